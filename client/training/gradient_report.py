"""How the gradients of a client's batches divide among the branches of the model's attention blocks.

Called by `fednc inspect gradients`. Works with every task: blocks name their branches
(`common/learning/attention_branches.py`). Changes no model.

Legend: B batch.
"""

from __future__ import annotations

import copy
from itertools import islice

import torch
from torch import nn

from fednc.client.link.work_hooks import Hooks
from fednc.client.training import trainer
from fednc.common import seeds
from fednc.common.errors import ConfigError
from fednc.common.learning.attention_branches import BranchCosines, compare, recording
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, TaskData


def trained_for(task: Task, model: nn.Module, data: TaskData, guide: Guide, steps: int) -> nn.Module:
    """A copy of the model after at least `steps` steps on the data, as a client trains."""
    found, section = copy.deepcopy(model), task.run.train
    if not steps:
        return found
    epochs = -(-steps * section.batch // max(1, data.examples))
    generator = seeds.generator(task.run.seed, "inspect")
    torch.manual_seed(seeds.derive(task.run.seed, "inspect-train"))
    trainer.train(task, found, data, guide, section.model_copy(update={"epochs": epochs}), 1, generator, Hooks())
    return found


def branch_gradients(
    task: Task, model: nn.Module, data: TaskData, guide: Guide, batches: int
) -> list[BranchCosines]:
    """The cosines over the first `batches` training batches.

    Raises:
        ConfigError: the model has no attention block that names its branches, or none that the loss depends on.
    """
    here = copy.deepcopy(model).train().requires_grad_(True)  # batch statistics must not change in the original
    generator, found = seeds.generator(task.run.seed, "inspect-batches"), []
    for batch in islice(data.train_batches(task.run.train.batch, generator), batches):
        with recording(here) as recorder:
            loss, _ = task.loss(here, batch, guide)
        found.append(recorder.gradients(loss))
    result = compare(found)
    if not result:
        raise ConfigError(
            f"the model of task {task.name!r} has no attention block whose branches are known. Those of "
            "PyTorch's MultiheadAttention are; a block of your own calls `branch` of "
            "fednc.common.learning.attention_branches for each use of an input"
        )
    return result
