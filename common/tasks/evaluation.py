"""The evaluation loop: one pass over data with a model in evaluation mode.

Clients, the server and `fednc predict` all use it, so the same model, data and batch size give the same sums
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch, Task, TaskData, add_stats
from fednc.common.tasks.metrics import Stats


def do_nothing() -> None:
    """The default of `before_batch`."""


def evaluation_batches(
    model: nn.Module, data: TaskData, batch: int, before_batch: Callable[[], None] = do_nothing
) -> Iterator[Batch]:
    """All batches of `data` in stored order, with `model` in evaluation mode and no gradients until the loop ends.

    Args:
        batch: examples per batch.
        before_batch: called before each batch; an exception from it ends the loop.
    """
    return _evaluating(model, data.eval_batches(batch), before_batch)


def display_batches(model: nn.Module, data: TaskData, batch: int) -> Iterator[Batch]:
    """As `evaluation_batches`, of what people see (`TaskData.display_batches`)."""
    return _evaluating(model, data.display_batches(batch), do_nothing)


def _evaluating(model: nn.Module, batches: Iterator[Batch], before_batch: Callable[[], None]) -> Iterator[Batch]:
    model.eval()
    with torch.no_grad():
        for each in batches:
            before_batch()
            yield each


def evaluate(
    task: Task,
    model: nn.Module,
    data: TaskData,
    guide: Guide,
    batch: int,
    before_batch: Callable[[], None] = do_nothing,
) -> Stats:
    """The task's statistics, summed over all of `data`; see `evaluation_batches`."""
    return summed(lambda each: task.statistics(model, each, guide), model, data, batch, before_batch)


def summed(
    sums_of: Callable[[Batch], Stats],
    model: nn.Module,
    data: TaskData,
    batch: int,
    before_batch: Callable[[], None] = do_nothing,
) -> Stats:
    """The sums of each batch, added up over all of `data`; {} without examples."""
    total: Stats = {}
    for each in evaluation_batches(model, data, batch, before_batch):
        add_stats(total, sums_of(each))
    return total
