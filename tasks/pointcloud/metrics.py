"""What a rotation changes: accuracy on clouds turned in any way, and by how much features differ.

Declared by the task, which evaluates each cloud twice.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from fednc.common.tasks.metric_info import PERCENT
from fednc.common.tasks.metrics import Metric, Stats, count_zeros, exact, refuse_unless, sum_zero
from fednc.tasks.dense.metrics import CONFUSION, MeanIoU, PixelAccuracy

MOST = 4.0  # an error is cut off here, so that one cloud with tiny features does not hide all others


class OfTurned(Metric):
    """A metric of the same clouds, each turned by a random rotation. The task passes it their scores."""

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """Nothing: see `of_turned`."""
        del output, target
        return {}

    @abstractmethod
    def of_turned(self, output: Tensor, target: Tensor) -> Stats:
        """The sums over a batch of outputs for turned clouds, and targets."""


class TurnedAccuracy(OfTurned):
    """Accuracy on turned clouds."""

    name, unit = "accuracy_so3", PERCENT

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {"turned_correct": count_zeros()}

    def of_turned(self, output: Tensor, target: Tensor) -> Stats:
        """See OfTurned."""
        return {"turned_correct": (output.argmax(dim=1) == target).sum()}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return int(sums["turned_correct"]) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        refuse_unless(
            0 <= int(sums["turned_correct"]) <= examples, "more turned clouds are correct than there are"
        )


class InvarianceError(Metric):
    """Mean over clouds of max |F(turned) - F| / max |F|, where F are features; 0: rotations change nothing."""

    name, higher_is_better = "invariance_error", False

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {"turned_change": sum_zero()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """Nothing: it takes features of turned clouds, see `sums_of`."""
        del output, target
        return {}

    @staticmethod
    def sums_of(feat_BD: Tensor, turned_BD: Tensor) -> Stats:
        """The sum over a batch of features [B, ...], as they are and of turned clouds."""
        change_B = (turned_BD - feat_BD).flatten(1).abs().amax(dim=1) / feat_BD.flatten(1).abs().amax(dim=1)
        return {"turned_change": exact(change_B.nan_to_num(MOST).clamp(0, MOST), step=2.0**-40)}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float(sums["turned_change"]) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        refuse_unless(0 <= float(sums["turned_change"]) <= MOST * examples, "an invariance error is out of bounds")


# ---- a class for every point: output is scores [B, K, P], target is labels [B, P] ----------------------------


class PointAccuracy(PixelAccuracy):
    """Share of labelled points that have the right class."""

    name = "point_accuracy"


class TurnedIoU(OfTurned):
    """Mean intersection over union on turned clouds."""

    name, unit = "miou_so3", PERCENT

    def __init__(self, most_points: int) -> None:
        """`most_points`: points of a cloud; more in the sums of a client are refused."""
        self._plain = MeanIoU(most_points)

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {f"turned_{name}": value for name, value in self._plain.zeros(label_space).items()}

    def of_turned(self, output: Tensor, target: Tensor) -> Stats:
        """See OfTurned."""
        return {f"turned_{name}": value for name, value in self._plain.sums(output, target).items()}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return self._plain.value({CONFUSION: sums[f"turned_{CONFUSION}"]}, examples)

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        self._plain.check({CONFUSION: sums[f"turned_{CONFUSION}"]}, examples)
