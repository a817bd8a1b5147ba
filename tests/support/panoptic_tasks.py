"""A small panoptic task with a model, data and the guide of round 1, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.panoptic.dataset import PanopticData
from fednc.tasks.panoptic.task import PanopticModel, PanopticTask

STREETS = "streets:images=6,test=3,seed=3"


def task_of(method: str = "fednc", **task: Any) -> PanopticTask:
    return PanopticTask(
        parse_run(
            {
                "task": {
                    "name": "panoptic",
                    "classes": ["sky", "road", "car", "person", "ball"],
                    "things": ["car", "person", "ball"],
                    "parts": {"car": ["body", "window", "wheel"], "person": ["head", "torso", "legs"]},
                    "size": [24, 32],
                    "width": 16,
                    "pyramid": [8, 16, 16],
                    **task,
                },
                "method": {"name": method},
                "frame": {"dim": 16},
            }
        )
    )


def ready(task: PanopticTask, spec: str = STREETS) -> tuple[PanopticModel, PanopticData, Guide]:
    torch.manual_seed(0)
    model, data = task.build_model(), task.read(spec, "train")
    memory = ClassMemory.empty(task.label_space, task.memory_dim)
    return model, data, guide_at(task, task.frame(0).etf_KD, memory, 1, count_K=data.count_K)


def batch_of(data: PanopticData) -> tuple[Tensor, ...]:
    return next(iter(data.eval_batches(data.examples)))
