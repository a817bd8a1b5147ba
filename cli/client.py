"""`fednc client`: attend a federation with one's own data, on one's own device."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import (
    AppDir,
    Ca,
    Cert,
    Certs,
    Device,
    Json,
    Key,
    Partition,
    Server,
    TokenFile,
    parse_partition,
)
from fednc.cli.output import say, show_table, write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.client.link import Host, LinkConfig
    from fednc.client.rehearsal import Rehearsal
    from fednc.protos import federation_pb2 as pb

Data = Annotated[
    str, typer.Option(metavar="SPEC", help="This client's data: digits, npz:PATH, folder:PATH or hf:ID_OR_PATH.")
]
Name = Annotated[str, typer.Option(help="Stable name of this client; default: the certificate's or token's.")]
ValShare = Annotated[float, typer.Option(min=0, max=0.9, help="Share of the data held out for evaluation.")]
MinSumExamples = Annotated[
    int,
    typer.Option(
        min=0,
        help="Send no sum of a class's features over fewer examples, even if the run would; the stricter counts.",
    ),
]
Once = Annotated[bool, typer.Option("--once", help="Leave after one run instead of staying for the next.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads for training; 0: PyTorch's default.")]
MaxHours = Annotated[
    float, typer.Option(min=0, help="After so many hours finish the work at hand and leave; 0: never.")
]
MinFreeGib = Annotated[
    float,
    typer.Option(min=0, help="Refuse work while less memory or temporary disk is free, in GiB; 0: never."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Connect, read the data, train on two batches, show examples/s and memory, leave; the server does "
        "not count this client.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Plaintext beyond loopback: for closed networks, if the server does too."),
]
NodeConfig = Annotated[
    str,
    typer.Option(metavar="'KEY=VALUE ...'", help="With --app: node configuration, as flower-supernode reads it."),
]
Grace = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="With --app: time that cancelled work has to finish.")
]


def command(
    server: Server, data: Data = "", app: AppDir = None, node_config: NodeConfig = "", grace: Grace = 10.0,
    name: Name = "", certs: Certs = None, ca: Ca = None, cert: Cert = None,
    key: Key = None, token_file: TokenFile = None, insecure: Insecure = False, partition: Partition = "",
    device: Device = "auto", val_share: ValShare = 0.1, min_sum_examples: MinSumExamples = 0,
    once: Once = False, threads: Threads = 0, max_hours: MaxHours = 0, min_free_gib: MinFreeGib = 0,
    dry_run: DryRun = False, json: Json = "",
) -> None:  # fmt: skip
    """Attend a federation: train on this machine's data whenever the server asks.

    Waits for a server that is not up yet, comes back by itself after broken connections, and stays for the
    next run unless --once. The server's run file decides what is trained; only tasks and methods that are
    installed here run, no code travels. Ctrl-C leaves.

    SIGUSR1 pauses: work holds at its next batch and the server hands out no more; SIGUSR2 goes on. A round does
    not wait longer for a paused client than for any other. --json goes with --dry-run.
    """
    import logging
    import os

    signals = _note_early_signals()
    import torch

    from fednc.client.bounds import Reserve
    from fednc.client.channel import credentials_from
    from fednc.client.link import LinkConfig
    from fednc.client.rehearsal import rehearse, rehearse_foreign
    from fednc.common.collector import spare_what_is_loaded
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
    if app:
        host, traits = _foreign_app(app, node_config, part, grace, threads)
    else:
        host, traits = _own_app(name, data, part, device, val_share, min_sum_examples)
    config = LinkConfig(server=server, name=name, credentials=credentials, once=once, **traits)
    if dry_run:
        if app:
            run_id = run_until_interrupted(rehearse_foreign(config, host))
            say(f"dry run for {run_id}: the server takes {name}, and the app {config.app} is loaded here")
        else:
            _show_rehearsal(run_until_interrupted(rehearse(config, host)), json)
        return
    host = Reserve(host, min_free_gib) if min_free_gib else host
    spare_what_is_loaded()
    over = run_until_interrupted(_attend(config, host, max_hours, signals))
    if over and over.failed:
        raise RunFailedError(f"the server ended the run: {over.reason}")


def _note_early_signals() -> list[int]:
    """Pause and resume as they come while this process still loads; by default they would end it."""
    noted: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: noted.append(number))
    return noted


async def _attend(config: LinkConfig, host: Host, max_hours: float, early: list[int]) -> pb.RunOver | None:
    """How the run ended; None where the client's hours were over before."""
    from fednc.client.bounds import attend_for
    from fednc.client.link import Link

    link, loop = Link(config, host), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, link.pause)
    loop.add_signal_handler(signal.SIGUSR2, link.resume)
    if early[-1:] == [signal.SIGUSR1]:
        link.pause()
    return await (attend_for(link, max_hours) if max_hours else link.run())


def _show_rehearsal(rehearsal: Rehearsal, target: str) -> None:
    show_table(
        f"dry run for {rehearsal.run_id}",
        ("device", "part", "examples", "held out", "batch", "s per batch", "examples/s", "peak MiB"),
        [
            (
                rehearsal.device, rehearsal.part or "own", rehearsal.examples, rehearsal.held_out, rehearsal.batch,
                rehearsal.batch_s, round(rehearsal.examples_per_s), rehearsal.memory_bytes >> 20,
            )
        ],
    )  # fmt: skip
    if target:
        write_json(target, rehearsal.to_json())


def _own_app(
    name: str, data: str, part: tuple[int, int] | None, device: str, val_share: float, least: int
) -> tuple[Host, dict[str, Any]]:
    """fednc's own app, and what the server must know of it."""
    from fednc.client.app import app
    from fednc.client.host import AppHost, ClientConfig
    from fednc.common import tasks
    from fednc.common.presets import PRESETS
    from fednc.protos import federation_pb2 as pb

    if not data:
        raise ConfigError("say with --data what this client trains on, e.g. --data digits or --data npz:PATH")
    installed = tuple(f"{task_name}/{task.version}" for task_name, task in tasks.installed().items())
    wanted = pb.Part(index=part[0], of=part[1]) if part else None
    config = ClientConfig(name=name, data=data, device=device, val_share=val_share, min_sum_examples=least)
    host = AppHost(config, app)
    return host, {"part": wanted, "tasks": installed, "methods": tuple(PRESETS)}


def _foreign_app(
    folder: Path, node_config: str, part: tuple[int, int] | None, grace_s: float, threads: int
) -> tuple[Host, dict[str, Any]]:
    """The Flower app in `folder`, and what the server must know of it."""
    from fednc.client.foreign import ForeignConfig, ForeignHost
    from fednc.common.flower import parse_pairs, read_app

    app = read_app(folder)
    settings = parse_pairs([node_config])
    if part:
        settings |= {"partition-id": part[0], "num-partitions": part[1]}
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    config = ForeignConfig(app=app, node_config=settings, grace_s=grace_s, environment=environment)
    return ForeignHost(config), {"app": app.id, "app_code": app.code}
