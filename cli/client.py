"""`fednc client`: take part in a federation with this machine's data and device."""

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
    ClassNames,
    Columns,
    Device,
    Json,
    Key,
    NoProxy,
    Partition,
    Server,
    TokenFile,
    parse_partition,
)
from fednc.cli.output import say
from fednc.common.errors import ConfigError
from fednc.common.tasks.data_spec import with_options

if TYPE_CHECKING:
    from fednc.client.link.link import Host, LinkConfig
    from fednc.client.policy.owner import Owner
    from fednc.protos import federation_pb2 as pb

Data = Annotated[
    str, typer.Option(metavar="SPEC", help="This client's data: digits, npz:PATH, folder:PATH or hf:ID_OR_PATH.")
]
Name = Annotated[
    str, typer.Option(help="Name of this client, which must not change. Default: from the certificate or token.")
]
ValShare = Annotated[float, typer.Option(min=0, max=0.9, help="Share of the data held out for evaluation.")]
MinSumExamples = Annotated[
    int,
    typer.Option(
        min=0,
        help="Send no class sum and no sums of the data over fewer examples; a run can ask for more than this, "
        "not for less.",
    ),
]
AllowTask = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-task",
        metavar="NAME",
        help="Run this task only; may be given several times. Default: every installed task (`fednc plugins`).",
    ),
]
Once = Annotated[bool, typer.Option("--once", help="Leave after one run instead of waiting for the next.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads for training; 0: PyTorch's default.")]
MaxHours = Annotated[
    float, typer.Option(min=0, help="Finish the current work and leave after so many hours; 0: never.")
]
MinFreeGib = Annotated[
    float,
    typer.Option(min=0, help="Refuse work while less memory or temporary disk is free, in GiB; 0: never."),
]
MaxDownloadGib = Annotated[
    float, typer.Option(min=0, help="Refuse larger downloads, in GiB; 0: whatever fits into free memory.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Connect, read the data, train on two batches, show examples/s and memory, and leave, without taking "
        "part.",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="What a server may ask of this client, in TOML; see examples/policies/strict.toml. All else is "
        "refused with a reason, and the run continues without the reply. With --dry-run: show what would be "
        "refused.",
    ),
]
AuditFile = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        help="Append a line to FILE for each reply that is sent and each refusal: time, run, kind, bytes, sha256. "
        "Default with --policy: audit.jsonl in its state folder.",
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Keep here what this client must remember from round to round if it is to survive a restart: layers "
        "that a task never sends, control variates, rounding errors of updates. Without it, a restart loses them.",
    ),
]
StopS = Annotated[
    float,
    typer.Option(
        "--stop-s",
        min=0.1,
        metavar="SECONDS",
        help="Exit so long after SIGTERM or Ctrl-C even if a thread is stuck.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Plaintext to another machine, if its server allows it: for closed networks."),
]
NodeConfig = Annotated[
    str,
    typer.Option(
        metavar="'KEY=VALUE ...'", help="With --app: node configuration, in the form of flower-supernode."
    ),
]
Grace = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="With --app: time for cancelled work to finish.")
]


def command(
    server: Server,
    data: Data = "",
    class_names: ClassNames = "",
    columns: Columns = "",
    app: AppDir = None,
    node_config: NodeConfig = "",
    grace: Grace = 10.0,
    name: Name = "",
    certs: Certs = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    partition: Partition = "",
    device: Device = "auto",
    val_share: ValShare = 0.1,
    min_sum_examples: MinSumExamples = 0,
    allow_task: AllowTask = None,
    once: Once = False,
    threads: Threads = 0,
    max_hours: MaxHours = 0,
    min_free_gib: MinFreeGib = 0,
    dry_run: DryRun = False,
    policy: PolicyFile = None,
    audit: AuditFile = None,
    state: StateDir = None,
    no_proxy: NoProxy = False,
    stop_s: StopS = 10.0,
    max_download_gib: MaxDownloadGib = 4,
    json: Json = "",
) -> None:
    """Take part in a federation: train on this machine's data when the server asks.

    Waits for a server that is not up yet, reconnects after broken connections, and waits for the next run unless
    --once. The server's run file decides what is trained; only tasks and methods that are installed here can run,
    as no code is sent. --allow-task narrows that to the tasks it names. Ctrl-C leaves.

    SIGUSR1 pauses: work stops at its next batch and the server sends no more; SIGUSR2 continues. A round waits no
    longer for a paused client than for any other. --json goes with --dry-run.

    With --policy this client can say no. Its owner decides which tasks, methods and runs are allowed, how often
    the same data may be asked about, how many examples a reply must be made of, and whether gradients and class
    sums may be asked for at all. A server can neither read nor change the file. To write one, copy
    examples/policies/strict.toml, then see what it would refuse in a run:
    fednc client --server HOST:PORT --data SPEC --policy FILE --dry-run.
    docs/deploy.md lists the keys and says what a policy cannot do.
    """
    import os

    signals = _note_early_signals()
    import torch

    from fednc.cli.policy import guarded, read_owner, refuse_for_foreign, show_dry_run
    from fednc.client.app.dry_run import dry_run_foreign
    from fednc.client.link.channel import credentials_from
    from fednc.client.link.link import LinkConfig
    from fednc.client.link.resource_limits import DownloadBounds, Reserve
    from fednc.common.errors import RunFailedError
    from fednc.common.plugins import TASKS, allowing_only
    from fednc.common.process.collector import spare_what_is_loaded
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.common.process.log_format import log_to_stderr

    log_to_stderr()
    if threads:
        torch.set_num_threads(threads)
    part = parse_partition(partition)
    credentials = credentials_from(
        server, certs=certs, ca=ca, cert=cert, key=key, token=token_file, insecure=insecure
    )
    if insecure:
        say("INSECURE: anyone on the network path can read and change the model and all updates", style="yellow")
    holder = credentials.holder if credentials else None
    name = name or (holder.name if holder else f"{socket.gethostname()}-{os.getpid()}")
    with allowing_only(TASKS, allow_task or []):
        owner = None
        if app:
            refuse_for_foreign(policy)
            host, traits = _foreign_app(app, node_config, part, grace, threads)
        else:
            spec = with_options(data, class_names, columns) if data else ""
            owner = read_owner(policy, spec, val_share)
            kept = "" if dry_run or state is None else str(state)
            allowed = _allowed(allow_task or [])
            host, traits = _own_app(name, spec, part, device, val_share, min_sum_examples, owner, kept, allowed)
        admit = DownloadBounds(max_download_gib, min_free_gib).admit
        config = LinkConfig(
            server=server, name=name, credentials=credentials, once=once, direct=no_proxy, admit=admit, **traits
        )
        if dry_run:
            if app:
                run_id = run_until_interrupted(dry_run_foreign(config, host), stop_s=stop_s)
                say(f"dry run for {run_id}: the server accepts {name}, and the app {config.app} loads here")
            else:
                show_dry_run(config, host, owner, json, stop_s=stop_s)
            return
        host, config = guarded(host, config, owner, audit)
        host = Reserve(host, min_free_gib) if min_free_gib else host
        spare_what_is_loaded()
        over = run_until_interrupted(_attend(config, host, max_hours, signals), stop_s=stop_s)
        if over and over.failed:
            raise RunFailedError(f"the server ended the run: {over.reason}")


def _note_early_signals() -> list[int]:
    """Note SIGUSR1 and SIGUSR2 while this process loads; by default they would end it."""
    noted: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: noted.append(number))
    return noted


async def _attend(config: LinkConfig, host: Host, max_hours: float, early: list[int]) -> pb.RunOver | None:
    """How the run ended; None if the client's hours were over first."""
    from fednc.client.link.link import Link
    from fednc.client.link.resource_limits import attend_for

    link, loop = Link(config, host), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, link.pause)
    loop.add_signal_handler(signal.SIGUSR2, link.resume)
    if early[-1:] == [signal.SIGUSR1]:
        link.pause()
    return await (attend_for(link, max_hours) if max_hours else link.run())


def _allowed(names: list[str]) -> tuple[str, ...]:
    """The tasks that --allow-task names, each once. Raises ConfigError where one cannot be used here."""
    from fednc.common.tasks.discovery import task_class

    for name in names:
        try:
            task_class(name)
        except ConfigError as e:
            raise ConfigError(f"--allow-task {name[:80]}: {e}") from e
    return tuple(dict.fromkeys(names))


def _own_app(
    name: str,
    data: str,
    part: tuple[int, int] | None,
    device: str,
    val_share: float,
    least: int,
    owner: Owner | None,
    state: str,
    allowed: tuple[str, ...],
) -> tuple[Host, dict[str, Any]]:
    """The host of fednc's own app, and what to tell the server about it."""
    from fednc.client.app.flower_app import app
    from fednc.client.app.host import AppHost, ClientConfig
    from fednc.client.app.manifest_key import manifest_key
    from fednc.common import versions
    from fednc.protos import federation_pb2 as pb

    if not data:
        raise ConfigError("no data: give --data, e.g. --data digits or --data npz:PATH")
    wanted = pb.Part(index=part[0], of=part[1]) if part else None
    config = ClientConfig(
        name=name,
        data=data,
        device=device,
        val_share=val_share,
        min_sum_examples=least,
        state=state,
        allowed_tasks=allowed,
        manifest=True,
        manifest_key=manifest_key(Path(state)) if state and not owner else b"",
    )
    config = owner.bind(config) if owner else config
    host = AppHost(config, app)
    return host, {
        "part": wanted,
        "tasks": versions.installed_tasks(allowed),
        "methods": versions.installed_methods(),
    }


def _foreign_app(
    folder: Path, node_config: str, part: tuple[int, int] | None, grace_s: float, threads: int
) -> tuple[Host, dict[str, Any]]:
    """The host of the Flower app in `folder`, and what to tell the server about it."""
    from fednc.client.foreign.host import ForeignConfig, ForeignHost
    from fednc.common.flower_adapter import parse_pairs, read_app

    app = read_app(folder)
    settings = parse_pairs([node_config])
    if part:
        settings |= {"partition-id": part[0], "num-partitions": part[1]}
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    config = ForeignConfig(app=app, node_config=settings, grace_s=grace_s, environment=environment)
    return ForeignHost(config), {"app": app.id, "app_code": app.code}
