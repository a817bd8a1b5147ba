"""One client's local work: train towards the guide, embed its classes, evaluate. Called by the app.

One trainer for all methods and tasks; what differs is in the guide (method) and in the task. No gRPC here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.client.hooks import Hooks, Step
from fednc.common.config import TrainSection
from fednc.common.guide import Guide
from fednc.common.losses import proximal
from fednc.common.memory import ClassSums
from fednc.common.tasks.base import Batch, Stats, Task, TaskData, add_stats

_REPORT_EVERY_S = 0.25


@dataclass(frozen=True)
class LocalResult:
    """What one round of local training did; losses are means over examples."""

    examples: int
    steps: int
    seconds: float
    losses: dict[str, float]


def train(
    task: Task, model: nn.Module, data: TaskData, guide: Guide, section: TrainSection, server_round: int,
    generator: torch.Generator, hooks: Hooks,
) -> LocalResult:  # fmt: skip
    """Train `model` in place for the section's epochs.

    Raises:
        CancelledError: the server no longer waits; the model is then half-trained.
    """
    model.train()
    lr = section.lr * section.lr_decay ** (server_round - 1)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=section.momentum, weight_decay=section.weight_decay
    )
    start = _start_of(model) if guide.method.proximal else []
    meter = _Meter(hooks, total=section.epochs * math.ceil(data.examples / section.batch))
    for _ in range(section.epochs):
        for batch in data.train_batches(section.batch, generator):
            hooks.check()
            loss, parts = _loss(task, model, batch, guide, start)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if section.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), section.clip_norm)
            optimiser.step()
            meter.add(task.batch_size_of(batch), loss, parts)
    return meter.result()


def _loss(
    task: Task, model: nn.Module, batch: Batch, guide: Guide, start: list[Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    loss, parts = task.loss(model, batch, guide)
    if start:
        parts = {**parts, "proximal": proximal(model.parameters(), start)}
        loss = loss + guide.method.proximal * parts["proximal"]
    return loss, parts


def _start_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class _Meter:
    """Sums losses on the device (no synchronisation per step) and reports progress now and then."""

    def __init__(self, hooks: Hooks, total: int) -> None:
        self._hooks, self._total = hooks, total
        self._sums: dict[str, Tensor] = {}
        self._examples = self._steps = 0
        self._started = self._reported = time.monotonic()

    def add(self, examples: int, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Count one step."""
        self._examples += examples
        self._steps += 1
        for name, value in {"loss": loss, **parts}.items():
            summed = value.detach() * examples
            self._sums[name] = self._sums[name] + summed if name in self._sums else summed
        now = time.monotonic()
        if now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._hooks.report(self._step(float(loss.detach()), now))

    def _step(self, loss: float, now: float) -> Step:
        speed = self._examples / max(1e-9, now - self._started)
        memory = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return Step(self._steps, self._total, loss, speed, memory)

    def result(self) -> LocalResult:
        """Totals of all steps; one last report, so that short rounds are seen too."""
        now = time.monotonic()
        losses = {name: float(value) / self._examples for name, value in self._sums.items()}
        self._hooks.report(self._step(losses.get("loss", 0.0), now))
        return LocalResult(self._examples, self._steps, now - self._started, losses)


def class_sums(task: Task, model: nn.Module, data: TaskData, batch: int, dim: int, hooks: Hooks) -> ClassSums:
    """Sums and counts of unit features over each class: evaluation mode, no augmentation, one pass."""
    sums = ClassSums.zeros(task.label_space, dim)
    for piece in _evaluating(model, data, batch, hooks):
        feat_BD, label_B = task.embed(model, piece)
        sums.add_batch(feat_BD, label_B)
    return sums


def evaluate(task: Task, model: nn.Module, data: TaskData, guide: Guide, batch: int, hooks: Hooks) -> Stats:
    """Additive statistics over all of `data`."""
    stats: Stats = {}
    for piece in _evaluating(model, data, batch, hooks):
        add_stats(stats, task.statistics(model, piece, guide))
    return stats


def _evaluating(model: nn.Module, data: TaskData, batch: int, hooks: Hooks) -> Iterator[Batch]:
    model.eval()
    with torch.no_grad():
        for piece in data.eval_batches(batch):
            hooks.check()
            yield piece
