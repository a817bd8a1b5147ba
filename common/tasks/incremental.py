"""The contract of a classifier whose classes come in sessions: what each stage trains, and what the server fits.

A mixin for `ClassifierTask`. A stage is a series of rounds over the same classes (`stages.py`); the server, the
strategy and the link know nothing else about sessions. docs/incremental.md describes them for users.
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
        """`guide` with the classes of the round's stage."""
        stage = self.stage(server_round)
        return replace(guide, classes=stage.classes, earlier=stage.earlier)

    def memory_cosines(self, model: nn.Module, guide: Guide) -> dict[str, float]:
        """By class name: cosine of the class's memory, in the frame's space, to its vertex; {} if unknown."""
        del model, guide
        return {}

    def fits_centrally(self, stage: Stage) -> bool:
        """Whether only the server trains in this stage, with `fit`, and clients do not."""
        del stage
        return False

    @property
    def settling_steps(self) -> int:
        """Epochs of `fit` with which the server adapts the model to the memory after the first stage; 0: none."""
        return 0

    def fit(self, model: nn.Module, guide: Guide, section: TrainSection, generator: torch.Generator) -> float:
        """Train on the class memory alone, in place; returns the mean loss. For tasks that fit centrally."""
        raise NotImplementedError(f"{type(self).__name__} does not fit centrally")
