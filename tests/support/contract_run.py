"""A small run on digits with three clients, its variants, and what two of its results must have in common."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.server.rounds.run import RunResult
from support.runs_on_grids import App, in_one_process

CLIENTS = [
    ClientConfig(name=name, data="digits", device="cpu", val_share=0.2) for name in ("carl", "anna", "bert")
]


def run_on_local(run: RunConfig, app: App, folder: Path) -> RunResult:
    del folder
    return in_one_process(run, CLIENTS, app)


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "seed": 5,
        "task": {
            "classes": [str(i) for i in range(10)],
            "model": "cnn",
            "width": 8,
            "size": 8,
            "channels": 1,
            "augment": "crop-flip",
        },
        "frame": {"dim": 16},
        "train": {"batch": 64},
        "rounds": {"total": 2, "min_clients": 2},
        "split": {"parts": len(CLIENTS), "alpha": 0.3, "seed": 3},
        "evaluate": {"test": "digits"},
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change}
    return parse_run(values)


def history(result: RunResult) -> list[dict[str, Any]]:
    """Everything that a run measured except time and traffic."""
    left_out = ("seconds", "bytes_up", "bytes_down")
    return [{k: v for k, v in asdict(r).items() if k not in left_out} for r in result.history.rounds]


def assert_same_bits(one: RunResult, other: RunResult) -> None:
    assert history(one) == history(other)
    for key, value in one.state.model.items():
        assert torch.equal(value, other.state.model[key]), key
    assert torch.equal(one.state.memory.mean_KD, other.state.memory.mean_KD)
    assert torch.equal(one.state.memory.seen_K, other.state.memory.seen_K)
    metrics = [result.state.memory.metric_DD for result in (one, other)]
    assert metrics == [None, None] or torch.equal(*metrics)


# Every kind of method: all that clients add, and one each of the steps at the server.
METHODS = (
    "fedavg",
    "fedprox",
    "scaffold",
    "moon",
    "fedntd",
    "fedlc",
    "fedetf",
    "fednc",
    "fedadam",
    "feddyn",
    "fednova",
    "scaffnew",
)
VARIANTS = {
    **{name: {"method": {"name": name}} for name in METHODS},
    "partial": {"rounds": {"clients_per_round": 2, "total": 3}, "method": {"memory_momentum": 0.5}},
    "local-memory": {"method": {"memory_model": "local", "anchor": 0.1}},
    "own-memory": {
        "method": {"memory_source": "own", "anchor": 0.5, "centre": 0.5, "target_blend": 0.2},
        "rounds": {"total": 3},
    },
    "fitted": {"method": {"memory_space": "backbone", "moment_codec": "int16", "projection": "fitted"}},
    "bf16": {"link": {"codec": "bf16"}},
    "int8": {"link": {"codec": "int8"}, "rounds": {"total": 3}},
}
