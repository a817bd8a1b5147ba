"""Runs any Flower ServerApp over our link: `fednc server --app DIR`. Called by the command.

The app runs in its own process (`server/foreign/process.py`) and sees Flower's grid there. The server keeps only
the model that its strategy ends with, and checks nothing else. A restarted server starts the app from the
beginning.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, QuorumError
from fednc.common.files import write_atomically
from fednc.common.flower_adapter import AppFolder
from fednc.common.process.app_pipe import AppProcess
from fednc.common.waiting import Deadline, wait_until
from fednc.protos import federation_pb2 as pb
from fednc.server.foreign.federation import AppFederation
from fednc.server.foreign.grid import AppGrid, Desk
from fednc.server.link.nodes import Node
from fednc.server.listener import serve
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import AppStarted, RunDone, WaitingForClients

_POLL_S = 0.1
_REPORT_EVERY_S = 30.0
_DONE_S, _STOP_S = 60.0, 5.0  # to wait for the process to end: after the app is done, after it was interrupted


def settings_for(app: AppFolder, run: RunConfig) -> RunConfig:
    """The run file of a foreign app: its [server] and [rounds], with the app's name as the run's name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", app.name).strip("._-")[:64] or "app"
    return run.model_copy(update={"name": name, "split": None})


async def run_app(
    app: AppFolder, overrides: list[str], run: RunConfig, folder: Path, events: EventLog, *, any_code: bool = False
) -> dict[str, Any]:
    """Serve the ServerApp in `app` until it ends; return what is written to `summary.json` in `folder`.

    Raises:
        AddressError, ConfigError
        QuorumError: too few clients attended within `rounds.wait_s`.
        RunFailedError: the ServerApp raised, or its process ended.
    """
    started, config = time.monotonic(), app.run_config(overrides)
    run_id = f"{folder.name}-{secrets.token_hex(4)}"  # the app starts from the beginning, so it is another run
    federation = AppFederation(run_id, run, folder / "spool", events, app, config, any_code=any_code)
    federation.door.keep_in(folder)
    process = AppProcess("fednc.server.foreign.process", handed=[federation.mailbox.bell])
    setup = {"folder": str(app.path), "run_id": run_id, "run_config": config, "keep": str(folder.resolve())}
    desks: list[Desk] = []

    def work(grid: AppGrid) -> str:
        _await_nodes(grid)
        desks.append(desk := Desk(grid, process))
        process.pipe.send(b"")
        return desk.serve()

    try:
        await asyncio.to_thread(_load, process, setup)
        model = await serve(federation, work, address=run.server.listen, grid_type=AppGrid)
    finally:
        await asyncio.to_thread(_end, process, desks)
        federation.mailbox.close()
    summary = _summary(federation, app, config, model, time.monotonic() - started)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    shutil.rmtree(folder / "spool", ignore_errors=True)
    kept = f"the app's model is {folder / model}" if model else "the app's strategy left no model"
    events.emit(RunDone(text=f"run {folder.name} is done; {kept}", folder=str(folder), model=model))
    return summary


def _load(process: AppProcess, setup: dict[str, Any]) -> None:
    """Wait until the app is imported. Raises ConfigError if that fails."""
    try:
        process.pipe.send_json(setup)
        failure = pb.Failure.FromString(process.pipe.receive())
    except (OSError, EOFError) as e:
        raise ConfigError(
            f"the process of the ServerApp in {setup['folder']} {process.end()} while it loaded"
        ) from e
    if failure.kind:
        raise ConfigError(failure.reason)


def _end(process: AppProcess, desks: list[Desk]) -> None:
    """End the process: let a finished app exit by itself, interrupt a running one, hang up on an unstarted one."""
    if desks and not desks[0].has_ended:
        process.interrupt()
    process.end(_DONE_S if desks and desks[0].has_ended else _STOP_S, hang_up=not desks)


def _await_nodes(grid: AppGrid) -> None:
    """Wait until enough nodes are ready: an app may ask for the list of nodes only once, when it starts.

    Raises:
        QuorumError: after `rounds.wait_s`.
        RunFailedError: the run ended in the meantime.
    """
    rounds, events, next_report = grid.federation.run.rounds, grid.federation.events, Deadline(0)
    ready: list[Node] = []

    def are_enough() -> bool:
        nonlocal ready, next_report
        ready = grid.ready()
        if len(ready) < rounds.min_clients and next_report.has_passed:
            next_report = Deadline(_REPORT_EVERY_S)
            count = f"{len(ready)} of {rounds.min_clients} clients are ready"
            text = f"{count}; the app starts when all are (--nodes, rounds.min_clients)"
            events.emit(WaitingForClients(text=text))
        return len(ready) >= rounds.min_clients

    if not wait_until(are_enough, Deadline(rounds.wait_s), _POLL_S):
        raise QuorumError(
            f"{len(ready)} of {rounds.min_clients} clients are ready after {rounds.wait_s:g} s. Start more, or "
            "lower --nodes (rounds.min_clients), or raise rounds.wait_s"
        )
    names = ", ".join(node.name for node in ready[:8]) + (" ..." if len(ready) > 8 else "")
    text = (
        f"the app {grid.federation.app} starts with {len(ready)} clients: {names}. It cannot be resumed: a "
        "restart of this server starts it from the beginning, without its rounds, model and state so far"
    )
    events.emit(AppStarted(text=text, clients=len(ready)))


def _summary(
    federation: AppFederation, app: AppFolder, config: dict[str, Any], model: str, duration_s: float
) -> dict[str, Any]:
    bytes_up, bytes_down = federation.traffic()
    return {
        "run": federation.run_id,
        "app": app.id,
        "run_config": config,
        "model": model,
        "duration_s": round(duration_s, 3),
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "clients": [{"name": node.name, "pid": node.pid} for node in federation.roster.nodes()],
    }
