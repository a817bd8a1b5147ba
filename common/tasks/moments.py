"""Federated mean and deviation of columns: the sums that clients send before round 1, and a layer that uses them.

For tasks that normalise their inputs (`Task.data_sums`). No site sees another site's rows. Knows no task.

Accuracy: the variance is a difference of two means, so it loses about 2 log10(|mean| / deviation) of float64's 16
digits. Subtract a known offset first where the deviation is below 1e-4 of the mean.

Legend: N values of a column, F columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.common.tasks.metrics import Stats, refuse_unless

_SLACK = 1e-6  # rounding of sums of up to 2^32 values, with room to spare


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of each column.

    Attributes:
        columns: F.
        per_example: values that one example gives to each column; the length of a window, for a signal's channels.
    """

    columns: int
    per_example: int = 1

    def zeros(self) -> Stats:
        """For `Task.no_data_sums`."""
        wide = torch.zeros(self.columns, dtype=torch.float64)
        return {"count": torch.zeros(self.columns, dtype=torch.int64), "sum": wide, "square": wide.clone()}

    def sums(self, value_NF: Tensor, least: int) -> Stats:
        """For `Task.data_sums`. NaN is a missing value; a column of fewer than `least` examples is left out."""
        wide_NF = value_NF.double()
        here_NF = ~wide_NF.isnan()
        count_F = here_NF.sum(dim=0)
        known_NF = torch.where(here_NF & (count_F >= least * self.per_example), wide_NF, 0.0)
        sums = {
            "count": torch.where(count_F >= least * self.per_example, count_F, 0),
            "sum": known_NF.sum(dim=0),
            "square": known_NF.square().sum(dim=0),
        }
        return {name: value.cpu() for name, value in sums.items()}

    def check(self, sums: Stats, announced: int) -> None:
        """For `Task.check_data_sums`. Raises ProtocolError: that many examples cannot have these sums."""
        count_F, sum_F, square_F = sums["count"], sums["sum"], sums["square"]
        most = announced * self.per_example
        refuse_unless(bool(((count_F >= 0) & (count_F <= most)).all()), "a column has more values than examples")
        root_F = (square_F.clamp_min(0) * count_F).sqrt()  # Cauchy-Schwarz; 0 where nothing is counted
        refuse_unless(bool((square_F >= 0).all()), "a sum of squares is negative")
        refuse_unless(bool((sum_F.abs() <= root_F * (1 + _SLACK)).all()), "a sum is larger than its squares allow")
        refuse_unless(not bool(square_F[count_F == 0].any()), "there is a sum of no values")

    def mean_and_deviation(self, sums: Stats) -> tuple[Tensor, Tensor]:
        """float64 [F] each, of the population; 0 and 1 for a column without values, 1 for a constant column."""
        count_F = sums["count"].clamp_min(1).double()
        mean_F = sums["sum"] / count_F
        square_F = sums["square"] / count_F
        variance_F = square_F - mean_F.square()
        varies_F = variance_F > square_F * 1e-14  # below, it is rounding alone
        return mean_F, torch.where(varies_F, variance_F, 1.0).sqrt()


class Standardise(nn.Module):
    """(x - mean) / deviation of the last dimension. Both are buffers; `aggregation` must make them FIXED."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("deviation", torch.ones(columns))

    def set(self, mean_F: Tensor, deviation_F: Tensor) -> None:
        """Use these from now on; kept in float32."""
        self.mean.copy_(mean_F)
        self.deviation.copy_(deviation_F)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return (x - self.mean) / self.deviation
