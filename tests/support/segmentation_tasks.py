"""A small segmentation task over generated scenes, and its guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.segmentation.task import SegmentationTask

CLASSES = ("wall", "floor", "disc", "square")


def segmentation_run(method: Mapping[str, Any] | None = None, **task: Any) -> RunConfig:
    """A run of the task; `task` changes keys of [task]."""
    return parse_run(
        {
            "task": {"name": "segmentation", "classes": list(CLASSES), "size": [16, 16], "width": 8, **task},
            "method": {"name": "fedavg", **(method or {})},
            "frame": {"dim": 8},
        }
    )


def segmentation_task(method: Mapping[str, Any] | None = None, **task: Any) -> SegmentationTask:
    """See `segmentation_run`."""
    return SegmentationTask(segmentation_run(method, **task))


def guide_of(task: SegmentationTask) -> Guide:
    """The guide of round 1, without a memory."""
    frame = task.frame(0)
    count_K = torch.ones(frame.vertices, dtype=torch.int64)
    return guide_at(task, frame.etf_KD, ClassMemory.empty(frame.vertices, frame.dim), 1, count_K=count_K)
