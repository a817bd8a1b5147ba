"""A small run in three stages over handwritten digits, in one process; tests of sessions share it."""

from __future__ import annotations

from typing import Any

import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.host import ClientConfig
from fednc.common.config import RunConfig, parse_run
from fednc.server.events import Event, EventLog
from fednc.server.run import FederatedRun, RunResult
from fednc.server.surroundings import Surroundings

BASE = ["0", "1", "2", "3", "4", "5"]
SESSIONS: list[dict[str, Any]] = [
    {"classes": ["6", "7"], "shots": 5, "rounds": 2, "epochs": 3},
    {"classes": ["8", "9"], "shots": 5, "rounds": 2, "epochs": 3},
]
DOT = {"name": "fednc", "loss": "dot", "readout": "vertex"}
COSINE = {"name": "fednc", "head": "cosine", "loss": "ce", "readout": "head"}
NEAREST = {"name": "fednc", "loss": "dot", "readout": "memory"}


def config(parts: int = 3, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "seed": 5,
        "task": {"name": "fewshot", "classes": BASE, "norm": "batch", "width": 8, "size": 8, "channels": 1},
        "frame": {"dim": 16, "vertices": 12},
        "method": DOT,
        "train": {"batch": 48, "lr": 0.1},
        "rounds": {"total": 2, "min_clients": parts, "evaluate_every": 0},
        "sessions": SESSIONS,
        "split": {"kind": "iid", "parts": parts},
        "evaluate": {"test": "digits"},
    }
    for section, change in changes.items():
        merges = isinstance(change, dict) and section != "method"
        values[section] = {**values.get(section, {}), **change} if merges else change
    return parse_run(values)


def names(run: RunConfig) -> list[str]:
    assert run.split is not None
    return [f"client-{index}" for index in range(run.split.parts)]


def prepare(run: RunConfig) -> tuple[FederatedRun, list[Event]]:
    torch.set_num_threads(1)
    log, events = EventLog(), list[Event]()
    log.listen(events.append)
    return FederatedRun(run, log), events


def clients(run: RunConfig, val_share: float = 0.0) -> list[ClientConfig]:
    return [ClientConfig(name=name, data="digits", device="cpu", val_share=val_share) for name in names(run)]


def carry_out(run: RunConfig, val_share: float = 0.0) -> tuple[RunResult, list[Event]]:
    prepared, events = prepare(run)
    with LocalGrid(run, clients(run, val_share)) as grid:
        return prepared.execute(grid, Surroundings(name_of=grid.name_of)), events
