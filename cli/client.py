"""`fednc client`: attend a federation with one's own data, on one's own device."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednc.cli.options import Device, Partition, parse_partition
from fednc.cli.output import say

if TYPE_CHECKING:
    from fednc.client.channel import Credentials
    from fednc.protos import federation_pb2 as pb

Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the server.")]
Data = Annotated[
    str, typer.Option(metavar="SPEC", help="This client's data: digits, npz:PATH, folder:PATH or hf:ID_OR_PATH.")
]
Name = Annotated[str, typer.Option(help="Stable name of this client; default: the certificate's or token's.")]
ValShare = Annotated[float, typer.Option(min=0, max=0.9, help="Share of the data held out for evaluation.")]
Once = Annotated[bool, typer.Option("--once", help="Leave after one run instead of staying for the next.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads for training; 0: PyTorch's default.")]
Certs = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that `fednc certs` made for this client.")]
Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate of the server's authority.")]
Cert = Annotated[Path | None, typer.Option(metavar="FILE", help="This client's certificate; with --key.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of --cert.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="This client's token.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Plaintext beyond loopback: for closed networks, if the server does too."),
]


def command(
    server: Server, data: Data, name: Name = "", certs: Certs = None, ca: Ca = None, cert: Cert = None,
    key: Key = None, token_file: TokenFile = None, insecure: Insecure = False, partition: Partition = "",
    device: Device = "auto", val_share: ValShare = 0.1, once: Once = False, threads: Threads = 0,
) -> None:  # fmt: skip
    """Attend a federation: train on this machine's data whenever the server asks.

    Waits for a server that is not up yet, comes back by itself after broken connections, and stays for the
    next run unless --once. The server's run file decides what is trained; only tasks and methods that are
    installed here run, no code travels. Ctrl-C leaves.
    """
    import logging
    import os

    import torch

    from fednc.client.channel import credentials_from
    from fednc.common.errors import RunFailedError
    from fednc.common.interrupt import run_until_interrupted

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads:
        torch.set_num_threads(threads)
    part = parse_partition(partition)
    credentials = credentials_from(
        server, certs=certs, ca=ca, cert=cert, key=key, token=token_file, insecure=insecure
    )
    if insecure:
        say("INSECURE: whoever is on the way can read and change the model and all updates", style="yellow")
    holder = credentials.holder if credentials else None
    name = name or (holder.name if holder else f"{socket.gethostname()}-{os.getpid()}")
    over = run_until_interrupted(_attend(server, name, credentials, data, part, device, val_share, once))
    if over.failed:
        raise RunFailedError(f"the server ended the run: {over.reason}")


async def _attend(
    server: str, name: str, credentials: Credentials | None, data: str, part: tuple[int, int] | None, device: str,
    val_share: float, once: bool,
) -> pb.RunOver:  # fmt: skip
    from fednc.client.app import app
    from fednc.client.host import AppHost, ClientConfig
    from fednc.client.link import Link, LinkConfig
    from fednc.common import tasks
    from fednc.common.config import PRESETS
    from fednc.protos import federation_pb2 as pb

    config = LinkConfig(
        server=server,
        name=name,
        credentials=credentials,
        part=pb.Part(index=part[0], of=part[1]) if part else None,
        tasks=tuple(f"{task_name}/{task.version}" for task_name, task in tasks.installed().items()),
        methods=tuple(PRESETS),
        once=once,
    )
    host = AppHost(ClientConfig(name=name, data=data, device=device, val_share=val_share), app)
    return await Link(config, host).run()
