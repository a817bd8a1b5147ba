"""A small run in three stages on handwritten digits, in one process. Shared by the tests of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.round_context import Guide
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event

BASE = ["0", "1", "2", "3", "4", "5"]
SESSIONS: list[dict[str, Any]] = [
    {"classes": ["6", "7"], "shots": 5, "rounds": 2, "epochs": 3},
    {"classes": ["8", "9"], "shots": 5, "rounds": 2, "epochs": 3},
]
DOT = {"name": "fednc", "loss": "dot", "readout": "vertex"}
COSINE = {"name": "fednc", "head": "cosine", "loss": "ce", "readout": "head"}
NEAREST = {"name": "fednc", "loss": "dot", "readout": "memory"}
DISCRIMINANT = {"name": "fednc", "loss": "dot", "readout": "discriminant"}


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


K, D = 10, 16
FRAME = draw_frame(K, D, seed=3)


def guide(run: Any = None, **changes: Any) -> Guide:
    plain = Guide(
        method=(run or config()).method,
        etf_KD=FRAME.etf_KD,
        mean_KD=torch.zeros(K, D),
        seen_K=torch.zeros(K, dtype=torch.bool),
        count_K=torch.zeros(K, dtype=torch.int64),
    )
    return replace(plain, **changes)


def write_npz(path: Path, labels: Sequence[int], order: Sequence[str], each: int = 40) -> Path:
    """Digits with these labels, under class names in this order."""
    digits = load_digits()
    index = np.concatenate([np.flatnonzero(digits.target == label)[:each] for label in labels])
    place = {name: i for i, name in enumerate(order)}
    y = np.array([place[str(label)] for label in digits.target[index]])
    np.savez(path, x_train=(digits.images[index] * 15.9).astype(np.uint8), y_train=y, classes=list(order))
    return path
