"""Metrics: additive sums over examples, and the value that follows from them.

A task declares its metrics. Clients send the sums; the server checks and adds them, and never sees an example. The
first metric of a task is its primary one, which history, status and reports show. Knows no task.

Legend: B batch, K label space, N bins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

Stats = dict[str, Tensor]  # sums and counts, float64 or int64: the stats of a union are the sum of the stats
EXAMPLES = "examples"  # the one count that every task has

# Terms are rounded to multiples of this before they are summed in float64. Such sums are exact up to 2e9, so
# batches may be combined in any order and grouping. It changes a mean by at most 1e-7.
SUM_STEP = 2.0**-22


class Metric(ABC):
    """One metric. Its sums have unique names, unless metrics share a sum with the same values.

    Attributes:
        name: name of its value in histories and reports.
        higher_is_better: the direction.
        unit: unit to show to users; `PERCENT` for a share of 0 to 1.
    """

    name: str
    higher_is_better: bool = True
    unit: str = ""

    @property
    def info(self) -> MetricInfo:
        """Name, direction and unit."""
        return MetricInfo(self.name, self.higher_is_better, self.unit)

    @abstractmethod
    def zeros(self, label_space: int) -> Stats:
        """The sums over no examples: every name with its type (float64 or int64) and shape."""

    @abstractmethod
    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """The sums over a batch of outputs of the model [B, ...] and targets [B, ...]."""

    @abstractmethod
    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """The metric over the examples of the sums; NaN if it is undefined for them."""

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """Further values to report, by name; `names` are the class names, if any."""
        del sums, examples, names
        return {}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """Raises ProtocolError if no set of `examples` examples has these sums. Types and shapes match `zeros`."""
        del sums, examples


def exact(term_B: Tensor, step: float = SUM_STEP) -> Tensor:
    """Sum of a batch's terms in float64, the same for any order and grouping while it is below 2^53 steps."""
    return ((term_B.double() / step).round() * step).sum()


def count_zeros(*shape: int) -> Tensor:
    """Counts over zero examples: int64 zeros."""
    return torch.zeros(shape, dtype=torch.int64)


def sum_zero() -> Tensor:
    """The sum over zero examples: float64."""
    return torch.tensor(0.0, dtype=torch.float64)


def refuse_unless(fits: bool, what: str) -> None:
    """Raises ProtocolError unless `fits`; `what` is wrong with the sums of a reply."""
    if not fits:
        raise ProtocolError(f"the statistics contradict each other: {what}")


def refuse_infinite(total: Tensor, what: str) -> None:
    """Raises UnusableValuesError if `total` is infinite: no lie, but a model that diverged at all clients."""
    if float(total) == math.inf:
        raise UnusableValuesError(f"{what} is infinite")


# ---- classifiers: output is scores [B, K], target is labels [B] -------------------------------------------------


def _hits(output: Tensor, target: Tensor) -> Stats:
    classes, hit_B = output.shape[1], output.argmax(dim=1) == target
    return {
        "count_K": torch.bincount(target, minlength=classes),
        "correct_K": torch.bincount(target[hit_B], minlength=classes),
    }


def _check_hits(sums: Mapping[str, Tensor], examples: int) -> None:
    count_K, correct_K = sums["count_K"], sums["correct_K"]
    refuse_unless(bool((correct_K >= 0).all() and (correct_K <= count_K).all()), "more hits than examples")
    # Check each count first: the total of absurd counts may overflow 64 bits.
    refuse_unless(bool((count_K <= examples).all()), "a class has more examples than there are")
    refuse_unless(
        int(count_K.sum()) == examples, "the counts of all classes do not add up to the number of examples"
    )


def _recalls(sums: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    counts = zip(names, sums["correct_K"].tolist(), sums["count_K"].tolist(), strict=False)
    return {name: right / count for name, right, count in counts if count}


class Accuracy(Metric):
    """Share of examples whose label has the highest score; also for each class."""

    name, unit = ACCURACY.name, PERCENT

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {
            "correct": count_zeros(),
            "count_K": count_zeros(label_space),
            "correct_K": count_zeros(label_space),
        }

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        found = _hits(output, target)
        return {"correct": found["correct_K"].sum(), **found}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return int(sums["correct"]) / examples

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`accuracy/<class>` for each class with examples."""
        del examples
        return {f"{self.name}/{name}": value for name, value in _recalls(sums, names).items()}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_hits(sums, examples)
        refuse_unless(
            int(sums["correct_K"].sum()) == int(sums["correct"]), "the hits of all classes do not add up"
        )


class BalancedAccuracy(Metric):
    """Mean over classes of the share of correct examples; classes without examples are left out."""

    name, unit = "balanced_accuracy", PERCENT

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {"count_K": count_zeros(label_space), "correct_K": count_zeros(label_space)}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return _hits(output, target)

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        held_K = sums["count_K"] > 0
        return float((sums["correct_K"][held_K].double() / sums["count_K"][held_K]).mean())

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_hits(sums, examples)


class F1(Metric):
    """Harmonic mean of precision and recall: with two classes that of the second one, with more the mean over
    classes.

    2 hits / (examples + predictions) of a class; classes with neither are left out. Also `f1/<class>`, and
    `f1_macro`, the mean over classes, if there are two.
    """

    name, unit = "f1", PERCENT

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {name: count_zeros(label_space) for name in ("count_K", "correct_K", "guessed_K")}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        guessed_K = torch.bincount(output.argmax(dim=1), minlength=output.shape[1])
        return {**_hits(output, target), "guessed_K": guessed_K}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        each_K = self._of_each(sums)
        return float(each_K[1]) if len(each_K) == 2 else float(each_K.nanmean())

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`f1/<class>` for each class with examples or predictions, and `f1_macro` with two classes."""
        del examples
        each_K = self._of_each(sums)
        pairs = zip(names, each_K.tolist(), strict=False)
        each = {f"{self.name}/{name}": value for name, value in pairs if not math.isnan(value)}
        return {f"{self.name}_macro": float(each_K.nanmean()), **each} if len(each_K) == 2 else each

    @staticmethod
    def _of_each(sums: Mapping[str, Tensor]) -> Tensor:
        """float64 [K], NaN for a class without examples and predictions."""
        return 2 * sums["correct_K"].double() / (sums["count_K"] + sums["guessed_K"])

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_hits(sums, examples)
        guessed_K = sums["guessed_K"]
        refuse_unless(bool((guessed_K >= sums["correct_K"]).all()), "more hits than predictions of a class")
        refuse_unless(bool((guessed_K <= examples).all()), "a class has more predictions than there are examples")
        refuse_unless(int(guessed_K.sum()) == examples, "the predictions do not add up to the number of examples")


class CrossEntropy(Metric):
    """Mean cross-entropy of the softmax of the scores. Infinite if an example has a class without a score yet."""

    name, higher_is_better = "loss", False

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {"loss_sum": sum_zero()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return {"loss_sum": exact(F.cross_entropy(output, target, reduction="none"))}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float(sums["loss_sum"]) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        del examples
        refuse_unless(bool(sums["loss_sum"] >= 0), "a loss below 0")


def judged(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(scores [M, K], labels [M]) of everything with a class: examples, or pixels and points if labels are maps.

    Args:
        output: scores [B, K, ...].
        target: labels [B, ...]; one that is no class, as `VOID` is, is not judged.
    """
    flat_M, classes = target.flatten(), output.shape[1]
    known_M = (flat_M >= 0) & (flat_M < classes)
    return output.movedim(1, -1).reshape(-1, classes)[known_M], flat_M[known_M]


class CalibrationError(Metric):
    """Expected calibration error of the predicted class, with `BINS` bins of equal width.

    Each example is put into a bin by its confidence, the largest softmax of its scores: bin i holds confidences
    above i / BINS up to (i + 1) / BINS. The value is the mean over examples of how far the accuracy of their bin
    is from its mean confidence.
    """

    name, higher_is_better, unit = "calibration_error", False, PERCENT
    BINS = 15

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {
            "calibration_count_N": count_zeros(self.BINS),
            "calibration_correct_N": count_zeros(self.BINS),
            "calibration_confidence_N": torch.zeros(self.BINS, dtype=torch.float64),
        }

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        confidence_B, class_B = output.double().softmax(dim=1).nan_to_num(0.0).max(dim=1)
        bin_B = ((confidence_B * self.BINS).ceil().long() - 1).clamp(0, self.BINS - 1)
        hit_B = class_B == target
        steps_B = (confidence_B / SUM_STEP).round() * SUM_STEP
        confidence_N = torch.zeros(self.BINS, dtype=torch.float64, device=output.device)
        return {
            "calibration_count_N": torch.bincount(bin_B, minlength=self.BINS),
            "calibration_correct_N": torch.bincount(bin_B[hit_B], minlength=self.BINS),
            "calibration_confidence_N": confidence_N.index_add_(0, bin_B, steps_B),
        }

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float((sums["calibration_correct_N"] - sums["calibration_confidence_N"]).abs().sum()) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        count_N, correct_N = sums["calibration_count_N"], sums["calibration_correct_N"]
        confidence_N = sums["calibration_confidence_N"]
        refuse_unless(bool((correct_N >= 0).all() and (correct_N <= count_N).all()), "more hits than examples")
        refuse_unless(bool((count_N <= examples).all()), "a bin holds more examples than there are")
        refuse_unless(int(count_N.sum()) == examples, "the bins do not hold every example")
        edge_N = torch.arange(self.BINS + 1, dtype=torch.float64) / self.BINS
        slack_N = count_N * SUM_STEP
        fits = (confidence_N >= count_N * edge_N[:-1] - slack_N) & (confidence_N <= count_N * edge_N[1:] + slack_N)
        refuse_unless(bool(fits.all()), "a bin has confidences from outside")


class AUROC(Metric):
    """Probability that an example of a class scores higher for it than one of another class; ties count half.

    Computed from two histograms per class: the log-odds of the class for its own examples and for all others,
    mapped monotonically to `BINS` equal bins. The order of two examples is exact unless both are in one bin, where
    they count as a tie. `auroc_error`, half the share of such pairs, is the largest possible error and is reported
    too. With two classes it is the value of the second one; with more, the mean over classes, each against all
    others, and `auroc/<class>`.
    """

    name, unit = "auroc", PERCENT
    BINS = 1024
    WIDTH = 8.0  # log-odds; bins have width 4 / BINS * WIDTH / 2 at 0, and are wider farther out

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {f"auroc_{side}_KN": count_zeros(self._rows(label_space), self.BINS) for side in ("own", "other")}

    @staticmethod
    def _rows(label_space: int) -> int:
        return 1 if label_space == 2 else label_space

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        classes, rows = output.shape[1], self._rows(output.shape[1])
        found = {name: count_zeros(rows, self.BINS) for name in self.zeros(classes)}
        for row in range(rows):
            label = classes - rows + row  # with two classes, the second
            bin_B = self.bin_of(log_odds(output, label))
            for name, side_B in zip(found, (target == label, target != label), strict=True):
                found[name][row] = torch.bincount(bin_B[side_B], minlength=self.BINS)
        return found

    def bin_of(self, log_odds_B: Tensor) -> Tensor:
        """int64 [B]: the bin of each value. Bins have the order of the values, apart from ties."""
        share_B = (torch.tanh(log_odds_B.double() / self.WIDTH) + 1) / 2
        return (share_B * self.BINS).long().clamp(0, self.BINS - 1)

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        area_K, _ = self._areas(sums)
        known_K = area_K[~area_K.isnan()]
        return float(known_K.mean()) if len(known_K) else math.nan

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`auroc_error`, and `auroc/<class>` with more than two classes."""
        del examples
        area_K, error_K = self._areas(sums)
        known_K = ~area_K.isnan()
        if not known_K.any():
            return {}
        each = {}
        if len(area_K) > 1:
            pairs = zip(names, area_K.tolist(), strict=False)
            each = {f"{self.name}/{name}": area for name, area in pairs if not math.isnan(area)}
        return {f"{self.name}_error": float(error_K[known_K].mean()), **each}

    @staticmethod
    def _areas(sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Two float64 [K]: area of each class, NaN without examples of it or of others; its largest error."""
        own_KN, other_KN = sums["auroc_own_KN"].double(), sums["auroc_other_KN"].double()
        below_KN = other_KN.cumsum(dim=1) - other_KN
        pairs_K = own_KN.sum(dim=1) * other_KN.sum(dim=1)  # 0 / 0 is NaN
        tied_K = (own_KN * other_KN).sum(dim=1)
        return ((own_KN * below_KN).sum(dim=1) + tied_K / 2) / pairs_K, tied_K / 2 / pairs_K

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        both_KN = torch.stack([sums["auroc_own_KN"], sums["auroc_other_KN"]])
        refuse_unless(
            bool(((both_KN >= 0) & (both_KN <= examples)).all()), "a bin holds more examples than there are"
        )
        refuse_unless(
            bool((both_KN.sum(dim=(0, 2)) == examples).all()), "the histograms do not hold every example"
        )
        if len(sums["auroc_own_KN"]) > 1:
            refuse_unless(
                int(both_KN[0].sum()) == examples, "the classes' own histograms do not hold every example"
            )


def log_odds(score_BK: Tensor, label: int) -> Tensor:
    """[B]: log of p / (1 - p), with p the softmax of `label`'s score; infinite if the score is."""
    others_BK = torch.cat([score_BK[:, :label], score_BK[:, label + 1 :]], dim=1)
    return score_BK[:, label].double() - others_BK.double().logsumexp(dim=1)


# ---- regressions: output and target are numbers of the same shape [B, ...]
# ---------------------------------------


class _MeanError(Metric):
    """An error averaged over all numbers of an example; infinite errors are refused."""

    higher_is_better = False

    def __init__(self, unit: str = "", step: float = SUM_STEP) -> None:
        """`unit`: unit of the target. `step`: power of two to which terms are rounded; larger for huge errors."""
        self.unit, self._step = unit, step

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {f"{self.name}_sum": sum_zero()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        if not len(target):
            return self.zeros(0)
        error_BX = (output.double().reshape(target.shape) - target.double()).reshape(len(target), -1)
        return {f"{self.name}_sum": exact(self._term(error_BX).mean(dim=1), self._step)}

    def _term(self, error_BX: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        refuse_infinite(sums[f"{self.name}_sum"], "the sum of errors")
        total = float(sums[f"{self.name}_sum"])
        refuse_unless(0 <= total < math.inf, f"a sum of errors of {total}")
        refuse_unless(examples > 0 or total == 0, "errors without examples")


class RMSE(_MeanError):
    """Root of the mean squared error."""

    name = "rmse"

    def _term(self, error_BX: Tensor) -> Tensor:
        return error_BX.square()

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return math.sqrt(float(sums["rmse_sum"]) / examples)


class MAE(_MeanError):
    """Mean absolute error."""

    name = "mae"

    def _term(self, error_BX: Tensor) -> Tensor:
        return error_BX.abs()

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float(sums["mae_sum"]) / examples


class R2(Metric):
    """Share of the target's variance that is explained: 1 - (sum of squared errors) / (sum of squares around the
    mean).

    Undefined for targets that are all the same. May be negative. One number per example.
    """

    name = "r2"

    def __init__(self, step: float = SUM_STEP, middle: float = 0.0) -> None:
        """`step`: as for the other errors. `middle`: subtracted from targets first, which keeps digits."""
        self._step, self._middle = step, middle

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {name: sum_zero() for name in ("r2_error_sum", "r2_target_sum", "r2_square_sum")}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        target_B = target.double().reshape(-1)
        error_B, shifted_B = output.double().reshape(-1) - target_B, target_B - self._middle
        return {
            "r2_error_sum": exact(error_B.square(), self._step),
            "r2_target_sum": exact(shifted_B, self._step),
            "r2_square_sum": exact(shifted_B.square(), self._step),
        }

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        square = float(sums["r2_square_sum"])
        spread = square - float(sums["r2_target_sum"]) ** 2 / examples
        return 1 - float(sums["r2_error_sum"]) / spread if spread > square * 1e-12 else math.nan

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        refuse_infinite(sums["r2_error_sum"], "the sum of squared errors")
        error, target, square = (float(sums[name]) for name in self.zeros(0))
        refuse_unless(0 <= error < math.inf and 0 <= square < math.inf, "a negative or infinite sum of squares")
        refuse_unless(math.isfinite(target), "an infinite sum of targets")
        # Each target and each square is rounded to a multiple of the step.
        slack = 1e-6 * (1 + square * examples) + 2 * examples * self._step * (1 + abs(target) + examples)
        refuse_unless(target**2 <= square * examples + slack, "a sum of targets is larger than its squares allow")
        refuse_unless(examples > 0 or error == target == square == 0, "errors without examples")
