"""Small tasks of several dense tasks at once, and their models, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.dense.dataset import DenseBatch
from fednc.tasks.multitask.model import MultitaskModel
from fednc.tasks.multitask.task import MultitaskTask, as_multitask

CLASSES = ("wall", "floor", "disc", "square")
SMALL: dict[str, Any] = {
    "classes": list(CLASSES),
    "size": [16, 16],
    "width": 8,
    "channels_each": 8,
    "memory_pixels": 64,
}
MULTITASK = {"name": "multitask", "tasks": ["segmentation", "depth", "normals", "edges"], **SMALL}
DATA = "scenes:images=8,test=4,objects=2"


def multitask(method: str = "fedavg", split: dict[str, Any] | None = None, **task: Any) -> MultitaskTask:
    """The task of a small run."""
    run = {"task": {**MULTITASK, **task}, "method": {"name": method}, "frame": {"dim": 8}, "train": {"batch": 4}}
    found = discovery.get(parse_run({**run, **({"split": split} if split else {})}))
    assert isinstance(found, MultitaskTask)
    return found


def model_of(task: MultitaskTask, seed: int = 0) -> MultitaskModel:
    """A model in evaluation mode whose offsets and outputs are not zero, as after some training."""
    torch.manual_seed(seed)
    model = as_multitask(task.new_model())
    for param in model.parameters():
        param.data += 0.1 * torch.randn_like(param)
    return model.eval()


def guide_of(task: MultitaskTask) -> Guide:
    """The guide of round 1."""
    frame = task.frame(0)
    return guide_at(task, frame.etf_KD, ClassMemory.empty(frame.vertices, task.memory_dim), 1)


def batch_of(task: MultitaskTask, data: str = DATA) -> DenseBatch:
    """The first pictures of the training data."""
    batch: DenseBatch = next(iter(task.load_train(data, None, None).eval_batches(4)))
    return batch


def outputs_of(task: MultitaskTask, model: MultitaskModel, inputs: Tensor) -> Tensor:
    """What the model predicts."""
    with torch.no_grad():
        return task.predict(model, inputs, guide_of(task))
