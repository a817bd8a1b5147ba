"""Parity over three clients: exact with a ring of the right depth, a U-shaped risk over depth, and the probe's
verdict.
"""

from __future__ import annotations

from typing import Any

import pytest

import fednc

SEEDS = (1, 2, 3)
DEPTHS = (1, 3, 20)
CLIENTS = dict.fromkeys("abc", "parity:6")
RUN: dict[str, Any] = {
    "task": {"name": "quantum", "classes": ["even", "odd"], "values": 6},
    "method": {"name": "fedavg"},
    "train": {"optimizer": "adam", "lr": 0.05, "epochs": 5, "batch": 16},
    "rounds": {"total": 20, "min_clients": 3, "evaluate_every": 0},
    "split": {"kind": "iid", "parts": 3},
    "evaluate": {"test": "parity:6"},
}
CIRCUITS = {"name": "quantum", "axis": "layers", "values": [1, 2, 3, 5, 10, 20], "task": {"model": "circuit"}}


def trained(seed: int, **task: Any) -> dict[str, float]:
    tables = {**RUN, "seed": seed, "task": {**RUN["task"], **task}, "split": {**RUN["split"], "seed": seed}}
    return fednc.run(tables, CLIENTS, val_share=0.0, progress=False, device="cpu").metrics


@pytest.mark.parametrize("seed", SEEDS)
def test_three_layers_with_a_ring_learn_the_parity_of_strings_that_nobody_trained_on(seed: int) -> None:
    assert trained(seed, layers=3)["accuracy"] == 1.0


def test_the_risk_is_u_shaped_over_depth() -> None:
    """The square loss is (1 - h)^2 for two classes, so the log-loss stands in for it; both are 0 without
    errors.
    """
    risk = {depth: sum(trained(seed, layers=depth)["loss"] for seed in SEEDS) / len(SEEDS) for depth in DEPTHS}
    assert risk[1] > risk[3] + 0.1
    assert risk[20] > risk[3] + 0.1


def _probed(tables: dict[str, Any], clients: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = fednc.run(tables, clients, val_share=0.0, progress=False, device="cpu").summary[
        "probe"
    ]
    return found


def test_the_probe_says_quantum_on_parity_and_picks_a_depth_that_learns_it() -> None:
    rivals = {"name": "classical", "axis": "width", "values": [8, 32, 128], "task": {"model": "mlp"}}
    section = {"families": [CIRCUITS, rivals], "steps": 40}
    found = _probed({**RUN, "seed": 1, "rounds": {"total": 1, "min_clients": 3}, "probe": section}, CLIENTS)
    assert found["picked"]["family"] == "quantum"
    assert found["picked"]["value"] in (2, 3, 5), "where whole trainings end without errors"
    held_out = dict(zip(CIRCUITS["values"], found["families"][0]["held_out"], strict=True))
    assert min(held_out, key=held_out.__getitem__) in (2, 3, 5)
    assert min(held_out[1], held_out[20]) > held_out[found["picked"]["value"]] + 0.02


def test_the_probe_says_classical_on_digits() -> None:
    families = [
        {**CIRCUITS, "values": [2, 5, 10]},
        {"name": "classical", "axis": "width", "values": [4, 16], "task": {"model": "cnn"}},
    ]
    tables = {
        **RUN,
        "task": {"name": "quantum", "classes": list("0123456789"), "size": 8, "encoding": "amplitude"},
        "train": {**RUN["train"], "lr": 0.01, "epochs": 1, "batch": 64},
        "rounds": {"total": 1, "min_clients": 3},
        "evaluate": {"test": "digits"},
        "probe": {"families": families, "steps": 40, "seeds": 2},
    }
    found = _probed(tables, dict.fromkeys("abc", "digits"))
    assert found["picked"]["family"] == "classical"
    assert found["families"][1]["loss"] < found["families"][0]["loss"]
