"""Runs one server for one run: folder, federation, result files. Called by `fednc server` and the demo.

Blocking work (task, model, test data, rounds, export) runs in the strategy's thread; the event loop serves
clients.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fednc.common.config.run import RunConfig
from fednc.common.errors import FedncError
from fednc.common.files import write_atomically
from fednc.common.tasks.api import Task
from fednc.server.access.setup import security_of
from fednc.server.aggregation.holdings import Declared
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.listener import serve
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.result_files import summary_of, write_files, write_round_examples
from fednc.server.rounds.run import FederatedRun, RunResult, checkpoints_of, new_or_continued
from fednc.server.storage import probe_record
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.client_metrics import ClientMetrics
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import DiskProblem, LastGoodKept, RunDone

_REFUSED_SHOWN = 5  # clients that were refused, in the message when too few came


@dataclass(frozen=True)
class Finished:
    """A finished run and the folder with its files."""

    folder: Path
    result: RunResult
    summary: dict[str, Any]


async def run_server(
    run: RunConfig,
    folder: Path,
    events: EventLog,
    *,
    control: RunControl | None = None,
    on_listening: Callable[[Federation, int], None] = lambda _federation, _port: None,
) -> Finished:
    """Serve one run until it ends and write its files to `folder`. The caller may stop it through `control`.

    Raises:
        AddressError, ConfigError, DataError, QuorumError
    """
    started, control = time.monotonic(), control or RunControl()
    address = run.server.listen
    security = security_of(run.server, address, events)
    checkpoints, best = checkpoints_of(run, folder)
    prepared, kept = await asyncio.to_thread(new_or_continued, run, events, folder, checkpoints, best)
    client_metrics = ClientMetrics(folder)
    client_metrics.go_back_to(kept.round if kept else 0)
    shutil.rmtree(folder / "spool", ignore_errors=True)  # half-received uploads of a server that was killed
    federation = Federation(folder.name, run, folder / "spool", events, attempt=_count_start(folder))
    federation.door.keep_in(folder)
    federation.manifests.keep_in(folder)
    expect_replies(federation, prepared, prepared.state)
    if kept:
        federation.restore(dict(kept.parts), kept.bytes_up, kept.bytes_down)
    returning = len(kept.parts) if kept else 0
    around = surroundings_of(federation, control, checkpoints, prepared.task, returning=returning)

    def work(grid: LinkGrid) -> RunResult:
        expecting = partial(expect_replies, federation, prepared)
        offered = replace(
            around,
            name_of=grid.name_of,
            reject=grid.reject,
            expect_replies=expecting,
            keep_examples=partial(write_round_examples, folder),
            keep_probe=partial(probe_record.write, folder, run),
            has_operator=True,
            best=best,
            client_metrics=client_metrics,
        )
        return prepared.execute(grid, offered)

    def listening(port: int) -> None:
        on_listening(federation, port)

    try:
        result = await serve(
            federation, work, address=address, security=security, control=control, on_listening=listening
        )
    except BaseException as e:  # interrupts too
        _keep_last_good(folder, prepared, federation, time.monotonic() - started, e)
        raise
    summary = link_summary(result, federation, time.monotonic() - started)
    await asyncio.to_thread(write_files, folder, result, summary)
    shutil.rmtree(folder / "spool", ignore_errors=True)
    events.emit(RunDone(text=f"run {folder.name} is done; files in {folder}", folder=str(folder)))
    return Finished(folder, result, summary)


def _keep_last_good(
    folder: Path, prepared: FederatedRun, federation: Federation, duration_s: float, cause: BaseException
) -> None:
    """Write the files of the last good round, so that a run that ends early is not lost."""
    events, result = federation.events, prepared.last_good
    if result is None:
        return
    ended = str(cause) if isinstance(cause, FedncError) else "interrupted"
    try:
        write_files(folder, result, {**link_summary(result, federation, duration_s), "ended": ended})
    except OSError as e:
        text = f"the model of the last good round cannot be written: {e.strerror}"
        events.emit(DiskProblem(text=text))
        return
    text = f"the model of round {result.state.completed}, history and summary are in {folder}"
    events.emit(LastGoodKept(text=text, round=result.state.completed, folder=str(folder)))


def expect_replies(federation: Federation, prepared: FederatedRun, state: GlobalState) -> None:
    """Tell the federation what replies look like in the current stage. Called from the strategy's thread."""
    schema = ReplySchema.of(
        prepared.task,
        state.trainable,
        state.extra,
        prepared.layout,
        is_first=prepared.stage.is_first,
    )
    federation.expect(schema)


def _count_start(folder: Path) -> int:
    """How many times this run's server was started before; counts this start too."""
    path = folder / "starts"
    before = int(path.read_text()) if path.exists() else 0
    write_atomically(path, str(before + 1).encode())
    return before


def surroundings_of(
    federation: Federation, control: RunControl, checkpoints: Checkpoints | None, task: Task, *, returning: int = 0
) -> Surroundings:
    """What the federation offers to a run."""
    nodes = federation.roster.nodes

    def declared(node_id: int) -> Declared | None:
        node = federation.roster.by_id(node_id)
        return node.declared if node else None

    def who_is_there() -> str:
        known = ", ".join(f"{n.name} ({n.problem or n.state})" for n in nodes()) or "no client"
        refused = ", ".join(list(federation.door.turned_away)[:_REFUSED_SHOWN])
        return f"Known: {known}." + (f" Refused, as the log says: {refused}." if refused else "")

    def missing_classes() -> list[str]:
        counts = [node.class_counts for node in nodes()]
        if task.takes_sessions or not any(counts):  # classes may come later, or no client declared any
            return []
        seen = [any(of_class) for of_class in zip_longest(*counts, fillvalue=0)]
        return [name for name, has in zip_longest(task.class_names, seen[: len(task.class_names)]) if not has]

    return Surroundings(
        declared=declared,
        who_is_there=who_is_there,
        missing_classes=missing_classes,
        traffic=federation.traffic,
        parts=federation.roster.kept_parts,
        checkpoints=checkpoints,
        control=control,
        returning=returning,
    )


def link_summary(
    result: RunResult, federation: Federation, duration_s: float, traffic: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The content of `summary.json`; `traffic`: bytes up and down, if they are not all that the link has
    counted.
    """
    bytes_up, bytes_down = traffic or federation.traffic()
    clients = [
        {"name": n.name, "examples": n.examples, "held_out": n.held_out, "device": n.device, "pid": n.pid}
        for n in federation.roster.nodes()
    ]
    return summary_of(
        federation.run_id,
        result,
        duration_s=round(duration_s, 3),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        clients=clients,
    )
