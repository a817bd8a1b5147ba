"""`fednc status`: the state of a run, and an operator's commands: pause, resume, stop, drop a node."""

from __future__ import annotations

import json as json_module
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Ca, Cert, Certs, Json, Key, NoProxy, Server, TokenFile
from fednc.cli.output import as_table, as_text, console, say, show_table, write_json
from fednc.common.errors import ConfigError
from fednc.common.tasks.metric_info import MetricInfo

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Group

    from fednc.ops.operator_client import OperatorLink
    from fednc.protos import operator_pb2 as pb
    from fednc.server.operations.commands import Command

Watch = Annotated[bool, typer.Option("--watch", help="Follow the run until it is over.")]
Every = Annotated[float, typer.Option(min=0.2, max=60, metavar="SECONDS", help="With --watch: the interval.")]
Pause = Annotated[bool, typer.Option("--pause", help="Finish the current round, then wait.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a paused run.")]
Stop = Annotated[bool, typer.Option("--stop", help="Finish the current round, then end with all files written.")]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="NAME", help="Disconnect this node and refuse it until it is readmitted."),
]
Readmit = Annotated[
    list[str] | None,
    typer.Option("--readmit", metavar="NAME", help="Admit a node again that was dropped or quarantined."),
]

COLUMNS = (
    "name",
    "state",
    "last seen",
    "at",
    "step",
    "loss",
    "examples/s",
    "MiB up",
    "MiB down",
    "held out",
    "device",
    "device MiB",
)


def command(
    server: Server,
    watch: Watch = False,
    every: Every = 1.0,
    pause: Pause = False,
    resume: Resume = False,
    stop: Stop = False,
    drop: Drop = None,
    readmit: Readmit = None,
    certs: Certs = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    no_proxy: NoProxy = False,
    json: Json = "",
) -> None:
    """Show the state of a run: round, nodes, who is missing; pause, resume or stop it, drop or readmit a node.

    Needs an operator's credential (`fednc certs node DIR NAME --operator`, or `token`), except for a server
    without encryption on the same machine. With --watch, `--json -` writes one line per status.
    """
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.server.operations import commands

    if pause and resume:
        raise ConfigError("--pause and --resume contradict each other; give one of them")
    link = operator_link(server, certs, ca, cert, key, token_file, direct=no_proxy)
    switches = ((commands.PauseRun(), pause), (commands.ResumeRun(), resume), (commands.StopRun(), stop))
    wanted = [
        *map(commands.DropNode, drop or ()),
        *map(commands.ReadmitNode, readmit or ()),
        *(switch for switch, is_wanted in switches if is_wanted),
    ]
    run_until_interrupted(_ask(link, wanted, every if watch else 0.0, json))


def operator_link(
    server: str,
    certs: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token: Path | None,
    *,
    direct: bool = False,
) -> OperatorLink:
    """The operator's link. Raises ConfigError: the server is on another machine and there is no credential."""
    from fednc.client.link.channel import credentials_from
    from fednc.common.address import is_loopback, parse_address
    from fednc.ops.operator_client import OperatorLink

    parse_address(server, "--server")
    if not (certs or ca or is_loopback(server)):
        raise ConfigError(
            f"--server {server} is another machine: give --certs DIR, the folder that "
            "`fednc certs node DIR NAME --operator` made"
        )
    credentials = credentials_from(server, certs=certs, ca=ca, cert=cert, key=key, token=token)
    return OperatorLink(server, credentials, direct)


async def _ask(
    link: OperatorLink,
    wanted: Sequence[Command],
    every_s: float,
    target: str,
) -> None:
    for each in wanted:
        await link.ask(each)
    if every_s:
        await _follow(link, every_s, target)
        return
    status = await link.status()
    if target != "-":
        _show(status)
    if target:
        write_json(target, as_json(status))


async def _follow(link: OperatorLink, every_s: float, target: str) -> None:
    with _screen() as show:
        async for status in link.watch(every_s):
            if target == "-":
                sys.stdout.write(json_module.dumps(as_json(status), allow_nan=False) + "\n")
                sys.stdout.flush()
                continue
            show(status)
            if target:
                write_json(target, as_json(status))


@contextmanager
def _screen() -> Iterator[Callable[[pb.RunStatus], None]]:
    """A table that updates in place on a terminal; elsewhere a line for each change."""
    from rich.live import Live

    said: list[str] = []

    def print_news(status: pb.RunStatus) -> None:
        if said[-1:] != [_headline(status)]:
            said[:] = [_headline(status)]
            say(said[0])

    if not console.is_terminal:
        yield print_news
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda status: live.update(_picture(status), refresh=True)


def _show(status: pb.RunStatus) -> None:
    say(_headline(status))
    show_table("clients", COLUMNS, [_row(node) for node in status.nodes])
    if any(node.holdings for node in status.nodes):
        show_table("examples by part of the task", *_holdings(status.nodes))


def _picture(status: pb.RunStatus) -> Group:
    from rich.console import Group

    table = as_table("clients", COLUMNS, [_row(node) for node in status.nodes])
    return Group(as_text(_headline(status)), table)


def _headline(status: pb.RunStatus) -> str:
    """The run in one line."""
    parts = [f"{status.run_id} ({status.method}): {_phase(status)}"]
    if status.HasField("primary"):
        parts.append(f"{status.primary.name} {_shown(status.primary)} after round {status.completed}")
    if status.missing:
        parts.append(f"waiting for {', '.join(status.missing)}")
    if status.stopping and not status.over:
        parts.append("stops after this round")
    if status.dropped:
        parts.append(f"dropped: {', '.join(status.dropped)}")
    if status.quarantined:
        parts.append(f"in quarantine until --readmit: {', '.join(status.quarantined)}")
    return "; ".join(parts)


def _shown(metric: pb.MetricValue) -> str:
    return MetricInfo(metric.name, not metric.lower_is_better, metric.unit).show(metric.value)


def _phase(status: pb.RunStatus) -> str:
    where = f"round {status.round} of {status.rounds}"
    if status.sessions:
        where += f", session {status.session} of {status.sessions} ({len(status.classes)} classes)"
    if status.HasField("waiting_session") and not status.over:
        return f"session {status.waiting_session} waits for an operator: fednc session next"
    if status.over:
        return f"over after {status.completed} rounds: {status.over}"
    if status.paused:
        return f"{where}, paused" if status.phase == status.WAITING else f"{where}, pauses after it"
    return f"waiting for clients to begin {where}" if status.phase == status.WAITING else where


def _row(node: pb.NodeStatus) -> list[object]:
    at_work = bool(node.step)
    return [
        node.name,
        f"{node.state}: {node.problem}"[:60] if node.problem else node.state,
        f"{node.last_seen_s:.0f} s ago",
        node.work or "-",
        f"{node.step}/{node.steps}" if at_work else "-",
        f"{node.loss:.3f}" if node.HasField("loss") else "-",
        f"{node.examples_per_s:,.0f}" if at_work else "-",
        f"{node.bytes_up / 2**20:.1f}",
        f"{node.bytes_down / 2**20:.1f}",
        _shown(node.primary) if node.HasField("primary") else "-",
        node.device,
        f"{node.device_memory_bytes / 2**20:,.0f}" if node.device_memory_bytes else "-",
    ]


def _holdings(nodes: Sequence[pb.NodeStatus]) -> tuple[list[str], list[list[object]]]:
    """Head and rows: who owns what, a column for each part of the task."""
    parts = list(dict.fromkeys(name for node in nodes for name in sorted(node.holdings)))
    return ["name", *parts], [
        [node.name, *(node.holdings.get(part, 0) or "-" for part in parts)] for node in nodes
    ]


def as_json(message: Message) -> dict[str, Any]:
    """Every field of a status; null if unknown, names of enumerations in lower case."""
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields}


def _value(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.has_presence and not message.HasField(field.name):
        return None
    if field.message_type and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.message_type:
        return as_json(value) if field.has_presence else [as_json(each) for each in value]
    if field.enum_type:
        return field.enum_type.values_by_number[value].name.lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float) else list(value)
