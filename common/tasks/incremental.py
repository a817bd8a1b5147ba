"""The contract of a classifier whose classes come in sessions: which tensors a stage trains, what the server fits.

A mixin beside `ClassifierTask`. A stage is rounds over the same classes (`stages.py`); the server, the strategy
and the link know nothing else of sessions. docs/incremental.md is its page for users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from fednc.common.config.tables import TrainSection
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task
from fednc.common.tasks.stages import Stage


class Incremental(Task):
    """A task whose classes may come later, in [[sessions]]."""

    takes_sessions: ClassVar[bool] = True

    def within_stage(self, guide: Guide, server_round: int) -> Guide:
        """`guide` with what a round's stage says of classes."""
        stage = self.stage(server_round)
        return replace(guide, classes=stage.classes, earlier=stage.earlier)

    def memory_cosines(self, model: nn.Module, guide: Guide) -> dict[str, float]:
        """Cosine of each class's memory, in the frame's space, to its vertex, by class name; {} where unknown."""
        del model, guide
        return {}

    def fits_centrally(self, stage: Stage) -> bool:
        """Whether the server alone trains in this stage, by `fit`; clients are not asked."""
        del stage
        return False

    @property
    def settling_steps(self) -> int:
        """Epochs of `fit` by which the server settles the model on the memory that ends the beginning; 0: none."""
        return 0

    def fit(self, model: nn.Module, guide: Guide, section: TrainSection, generator: torch.Generator) -> float:
        """Train on the class memory alone, in place; the mean loss. For tasks that fit centrally."""
        raise NotImplementedError(f"{type(self).__name__} does not fit centrally")
