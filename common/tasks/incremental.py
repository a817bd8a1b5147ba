"""The contract of a classifier whose classes come in sessions: what each stage trains, and what the server fits.

Derive from it first, then from the classifier that reads and embeds the data. A stage is a series of rounds over
the same classes (`stages.py`); the server, the strategy and the link know nothing else about sessions.
docs/incremental.md describes them for users.

Legend: B batch, S stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fednc.common.config.tables import TrainSection
from fednc.common.errors import ProtocolError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch
from fednc.common.tasks.classifier import ClassifierTask
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.session_metrics import figures
from fednc.common.tasks.stages import Stage
from fednc.common.tasks.tensor_data import UNLABELLED


class Incremental(ClassifierTask):
    """A classifier whose classes may come later, in [[sessions]]. Its `metrics` must hold `Accuracy`."""

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

    # ---- accuracy by session -------------------------------------------------------------------------------

    def statistics(self, model: nn.Module, batch: Batch, guide: Guide) -> Stats:
        """The classifier's statistics, and the number of evaluated examples by stage."""
        counted_S = self._none_by_stage()
        counted_S[self._stage_of(guide)] = int((batch[1] != UNLABELLED).sum())
        return {**super().statistics(model, batch, guide), "evaluated_S": counted_S}

    def no_statistics(self) -> Stats:
        """See Task."""
        return {**super().no_statistics(), "evaluated_S": self._none_by_stage()}

    def check_statistics(self, stats: Stats, announced: int) -> bool:
        """See Task."""
        evaluated_S = stats["evaluated_S"]
        if bool((evaluated_S < 0).any()) or int(evaluated_S.sum()) != int(stats["examples"]):
            raise ProtocolError("the counts of all stages do not add up to the number of examples")
        return super().check_statistics(stats, announced)

    def measure(self, stats: Mapping[str, Tensor]) -> dict[str, float]:
        """The classifier's metrics, and `base`, `novel`, `newest` and `harmonic` of `session_metrics.py`."""
        found = super().measure(stats)
        if not stats or not int(stats["examples"]):
            return found
        stage = self.stages[int(stats["evaluated_S"].nonzero().max())]
        return found | figures(stats["correct_K"], stats["count_K"], self.stages[0].classes, stage)

    def _none_by_stage(self) -> Tensor:
        return torch.zeros(len(self.stages), dtype=torch.int64)

    def _stage_of(self, guide: Guide) -> int:
        classes = self._classes_in(guide)
        return next(stage.number for stage in self.stages if classes <= stage.classes)
