"""Split ownership in a federation of three clients: the model beats the best constant on all four tasks.

Nobody has all labels, each task has two owners, as in the shipped comparison. And the model as one graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

import fednc
from fednc.testing import TaskContract

SCENES = "objects=3,tint=0.5,noise=0.05"
SITES = {
    "north": f"scenes:images=40,{SCENES},seed=1,maps=label+depth",
    "south": f"scenes:images=40,{SCENES},seed=2,maps=label+normals+edges",
    "west": f"scenes:images=40,{SCENES},seed=3,maps=depth+normals+edges",
}
RUN = {
    "task": {
        "name": "multitask",
        "classes": ["wall", "floor", "disc", "square", "triangle"],
        "size": [32, 32],
        "flip": True,
    },
    "method": {"name": "fedavg"},
    "frame": {"dim": 32},
    "train": {"optimizer": "adamw", "schedule": "cosine", "lr": 0.005, "batch": 8, "epochs": 2, "clip_norm": 5.0},
    "rounds": {"total": 8, "min_clients": 3, "evaluate_every": 8},
    "evaluate": {"test": f"scenes:test=60,{SCENES},seed=99", "batch": 30},
}
# By how much each metric must be better than the best constant: a share of the constant's value.
LEAST = {"miou": 1.0, "depth_rmse": 0.1, "normal_error": 0.2, "edge_f": 0.2}
LOWER = ("depth_rmse", "normal_error")


@pytest.mark.timeout(600)
def test_the_federation_beats_the_best_constant_on_every_task(tmp_path: Path) -> None:
    fednc.run(RUN, SITES, device="cpu", progress=False, folder=tmp_path)
    found = json.loads((tmp_path / "rounds.json").read_text())[-1]["test"]
    gains = {name: (found[name] / found[f"{name}/constant"] - 1) * (-1 if name in LOWER else 1) for name in LEAST}
    assert all(gains[name] >= least for name, least in LEAST.items()), (gains, found)


class TestTheGraph(TaskContract):
    """The contract once more, with the exported graph."""

    task = "multitask"
    data = "scenes:images=12,test=6,objects=2"
    options: ClassVar = {
        "tasks": ["segmentation", "depth", "normals", "edges"],
        "classes": ["wall", "floor", "disc", "square"],
        "size": [16, 16],
        "width": 8,
        "channels_each": 8,
        "memory_pixels": 64,
    }
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fednc"}, "train": {"batch": 4}}
