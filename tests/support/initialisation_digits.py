"""Digits, a plain network with a gain, and the central form of NIO, for the tests of the initialisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.config.tables import InitSection
from fednc.common.initialise.nio import mean_cosine
from fednc.common.initialise.probe import Probe
from fednc.common.initialise.windows import cut, windows
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Batch, Task, TaskData
from fednc.common.tasks.round_guide import guide_at
from fednc.server.rounds.initialisation import draw_with_gain


def digits_run(**keys: Any) -> RunConfig:
    """Fedavg on 8x8 digits; the tables in `keys` override parts of it."""
    task = {"classes": [str(i) for i in range(10)], "size": 8, "channels": 1, "width": 24, "model": "plain"}
    base: dict[str, Any] = {"task": task, "method": {"name": "fedavg"}, "frame": {"dim": 64}}
    for key, value in keys.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_run(base)


class Place:
    """A process with digits and a model."""

    def __init__(self, run: RunConfig) -> None:
        self.run, self.section = run, run.init
        self.task: Task = discovery.get(run)
        self.data: TaskData = self.task.load_train("digits", None, None)
        torch.manual_seed(run.seed)
        self.model: nn.Module = self.task.build_model()
        draw_with_gain(self.model, run.init.gain)
        self.guide: Guide = guide_at(
            self.task, draw_frame(10, run.frame.dim, 0).etf_KD, ClassMemory.empty(10, run.frame.dim), 1
        )
        self.probe = Probe(self.task, self.model, self.guide, self.task.shared_keys(self.model))

    def batches(self) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(self.run.seed)
        while True:
            yield from self.data.train_batches(self.section.batch, draw)

    def cuts(self, batch: Batch) -> list[Batch]:
        parts = windows(self.task.batch_size_of(batch), self.section.sub_batches, self.section.overlap)
        return [cut(batch, rows) for rows in parts]

    def measure(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Mean cosine and mean norm."""
        found = [self.probe.gradient(batch) for batch in batches]
        sum_N = torch.stack([one.unit_N.detach() for one in found]).sum(dim=0)
        return mean_cosine(sum_N, len(found)), sum(float(one.norm.detach()) for one in found) / len(found)


def place(section: dict[str, Any] | None = None, **keys: Any) -> Place:
    given = section or {}
    InitSection.model_validate(given)
    return Place(digits_run(init=given, **keys))
