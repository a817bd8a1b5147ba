"""One server process, one run: its folder, its federation, its result files. Called by the command and the demo.

Blocking work (task, model, test data, rounds, export) happens in the strategy's thread; the event loop serves.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fednc.common.config import RunConfig
from fednc.common.export import export
from fednc.common.files import write_atomically
from fednc.server.app import FederatedRun, RunResult, Surroundings
from fednc.server.events import EventLog
from fednc.server.federation import Federation
from fednc.server.grid import LinkGrid
from fednc.server.serve import serve


@dataclass(frozen=True)
class Finished:
    """A finished run and where its files lie."""

    folder: Path
    result: RunResult
    summary: dict[str, Any]


def new_run_folder(run: RunConfig) -> Path:
    """A new folder `runs/<name>-<time>`; its name is the run's id."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{n}" for n in range(2, 1000))]:
        folder = Path(run.server.runs) / f"{run.name}-{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(folder)


async def run_server(
    run: RunConfig,
    folder: Path,
    events: EventLog,
    *,
    on_listening: Callable[[Federation, int], None] = lambda _federation, _port: None,
) -> Finished:
    """Serve one run to its end and write its files into `folder`.

    Raises:
        AddressError, ConfigError, DataError, QuorumError
    """
    started = time.monotonic()
    prepared = await asyncio.to_thread(FederatedRun, run, events)
    federation = Federation(folder.name, run, folder / "spool", events)

    def work(grid: LinkGrid) -> RunResult:
        return prepared.execute(grid, _surroundings(federation))

    def listening(port: int) -> None:
        host = run.server.listen.rpartition(":")[0]
        events.emit("listening", f"run {folder.name} listens on {host}:{port}", port=port, plaintext=True)
        on_listening(federation, port)

    result = await serve(federation, work, address=run.server.listen, on_listening=listening)
    summary = _summary(result, federation, time.monotonic() - started)
    await asyncio.to_thread(_write_files, folder, result, summary)
    (folder / "spool").rmdir()
    events.emit("done", f"run {folder.name} is done; files in {folder}", folder=str(folder))
    return Finished(folder, result, summary)


def _surroundings(federation: Federation) -> Surroundings:
    nodes = federation.roster.nodes

    def name_of(node_id: int) -> str:
        return next((n.name for n in nodes() if n.node_id == node_id), str(node_id))

    def who_is_there() -> str:
        return "There: " + (", ".join(f"{n.name} ({n.problem or n.state})" for n in nodes()) or "nobody") + "."

    def traffic() -> tuple[int, int]:
        return sum(n.bytes_up for n in nodes()), sum(n.bytes_down for n in nodes())

    return Surroundings(name_of=name_of, who_is_there=who_is_there, traffic=traffic)


def _summary(result: RunResult, federation: Federation, duration_s: float) -> dict[str, Any]:
    nodes = federation.roster.nodes()
    return {
        "run": federation.run_id,
        "method": result.run.method.name,
        "seed": result.run.seed,
        "config_sha256": result.run.digest,
        "frame_sha256": result.frame.digest,
        "duration_s": round(duration_s, 3),
        "bytes_up": sum(n.bytes_up for n in nodes),
        "bytes_down": sum(n.bytes_down for n in nodes),
        "clients": [
            {"name": n.name, "examples": n.examples, "held_out": n.held_out, "device": n.device, "pid": n.pid}
            for n in nodes
        ],
        **result.history.summary(),
    }


def _write_files(folder: Path, result: RunResult, summary: dict[str, Any]) -> None:
    model = result.task.build_model()
    model.load_state_dict(result.state.model, strict=False)
    export(folder, model, result.task, result.frame, result.state.memory, result.run)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    write_atomically(folder / "rounds.json", json.dumps(result.history.to_json(), indent=2).encode())
