"""A task without classes: time until an event, with censored patients (Cox's proportional hazards).

Reads CSV files with a row per patient: numbers, a time, and whether the event happened at that time (1) or the
patient was last seen then (0). Trains a linear risk with Cox's partial likelihood over each batch. The metric is
concordance: of all pairs in which it is known who had the event first, the share in which that patient has the
higher risk.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fednc.common.errors import DataError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch, Purpose, TaskOptions
from fednc.common.tasks.metrics import PERCENT, Metric, Stats, count_zeros, refuse_unless
from fednc.common.tasks.tensor_data import TensorData
from fednc.common.tasks.tensor_task import TensorTask

TIMES, RISKS = 128, 128  # bins


class Concordance(Metric):
    """Share of correctly ordered pairs over the patients of all sites; ties count half.

    Computed from a histogram of time, event and risk, which adds up over sites. The order of two patients is known
    unless they are in one bin. `concordance_error` is the largest error that this can cause.
    """

    name, unit = "concordance", PERCENT

    def __init__(self, horizon: float = 1.0) -> None:
        """`horizon`: start of the last bin; later times are all in that bin."""
        self._horizon = horizon

    def zeros(self, label_space: int) -> Stats:
        del label_space
        return {"seen_ETR": count_zeros(2, TIMES, RISKS)}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """The sums over risks [B] and (time, event) [B, 2]."""
        time_B = (target[:, 0].double() / self._horizon * (TIMES - 1)).long().clamp(0, TIMES - 1)
        risk_B = ((torch.tanh(output.double() / 4) + 1) / 2 * RISKS).long().clamp(0, RISKS - 1)
        place_B = (target[:, 1].long() * TIMES + time_B) * RISKS + risk_B
        return {"seen_ETR": torch.bincount(place_B, minlength=2 * TIMES * RISKS).reshape(2, TIMES, RISKS)}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        seen_ETR = sums["seen_ETR"]
        refuse_unless(
            bool(((seen_ETR >= 0) & (seen_ETR <= examples)).all()), "a bin has more examples than there are"
        )
        refuse_unless(int(seen_ETR.sum()) == examples, "the histogram does not hold every example")

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        del examples
        right, tied, pairs, _ = _pairs(sums["seen_ETR"])
        return (right + tied / 2) / pairs if pairs else math.nan

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        del examples, names
        _, tied, pairs, unknown = _pairs(sums["seen_ETR"])
        return {f"{self.name}_error": tied / 2 / pairs + unknown / (pairs + unknown)} if pairs else {}


def _pairs(seen_ETR: Tensor) -> tuple[float, float, float, float]:
    """Pairs in which the earlier patient had the event: correctly ordered, tied, all; pairs in one time bin."""
    event_TR, all_TR = seen_ETR[1].double(), seen_ETR.sum(dim=0).double()
    later_TR = all_TR.sum(dim=0) - all_TR.cumsum(dim=0)
    lower_TR = later_TR.cumsum(dim=1) - later_TR
    all_T, censored_T = all_TR.sum(dim=1), seen_ETR[0].sum(dim=1).double()
    unknown = (all_T * (all_T - 1) - censored_T * (censored_T - 1)).sum() / 2
    pairs = (event_TR.sum(dim=1) * later_TR.sum(dim=1)).sum()
    return float((event_TR * lower_TR).sum()), float((event_TR * later_TR).sum()), float(pairs), float(unknown)


class SurvivalOptions(TaskOptions):
    """The keys of [task]."""

    features: dict[str, tuple[float, float]]  # column: (mean, standard deviation)
    time: str = "time"
    event: str = "event"
    horizon: float  # times beyond this are not distinguished


class Survival(TensorTask):
    """Cox's proportional hazards. Batches are (features [B, F], (time, event) [B, 2])."""

    name, version, Options = "survival", 1, SurvivalOptions
    options: SurvivalOptions
    metrics: ClassVar = (Concordance,)

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self.measured_by = (Concordance(self.options.horizon),)

    def build_model(self) -> nn.Module:
        return nn.Linear(len(self.options.features), 1, bias=False)

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log partial likelihood per event (Breslow's ties), over the patients at risk in the batch."""
        del guide
        inputs, outcome_B2 = batch
        order_B = outcome_B2[:, 0].argsort(descending=True)
        risk_B, event_B = model(inputs)[order_B, 0], outcome_B2[order_B, 1]
        return -((risk_B - risk_B.logcumsumexp(dim=0)) * event_B).sum() / event_B.sum().clamp(min=1), {}

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        del guide
        return model(batch[0])[:, 0], batch[1]

    def groups(self, data: TensorData) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A simulated split is uneven over those who had the event and those who did not."""
        return data.tensors[1][:, 1].long().numpy()

    def read(self, spec: str, purpose: Purpose) -> TensorData:
        part = "train" if purpose == "train" else "test"  # where the table has a column `split`
        try:
            with Path(spec.removeprefix("csv:")).open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row.get("split", part) == part]
            columns, options = self.options.features.items(), self.options
            inputs = [[(float(row[name]) - mean) / std for name, (mean, std) in columns] for row in rows]
            outcomes = [[float(row[options.time]), float(row[options.event])] for row in rows]
        except (OSError, KeyError, ValueError) as e:
            raise DataError(f"{spec}: cannot be read as a survival table ({type(e).__name__}: {e})") from e
        if any(time < 0 or event not in (0, 1) for time, event in outcomes):
            raise DataError(f"{spec}: {options.time} must not be negative, {options.event} must be 0 or 1")
        inputs_NF = torch.tensor(inputs).reshape(-1, len(columns))
        return TensorData(tensors=(inputs_NF, torch.tensor(outcomes).reshape(-1, 2)))
