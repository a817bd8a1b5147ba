"""The metrics of the tasks, all from additive sums, each with what the best constant prediction would have.

A metric sees the prediction and the truth of its own task; pixels whose truth is not known are not judged. Built
by the task. `NAME/constant` is the value of the best prediction that is the same for every pixel of the judged
data: a model that is not better has learnt nothing.

Legend: B batch, H height, W width, P judged pixels, N thresholds, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.tasks.metric_info import PERCENT
from fednc.common.tasks.metrics import Metric, Stats, count_zeros, exact, refuse_infinite, refuse_unless, sum_zero
from fednc.tasks.dense.maps import DEPTH, EDGES, NORMALS, SALIENCY, known
from fednc.tasks.dense.metrics import MeanIoU, confusion, iou_of

CONSTANT = "constant"
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
HALF_TURN = 180.0
PARTS_CONFUSION = "part_confusion_KK"


class ClassIoU(MeanIoU):
    """Mean IoU of the segmentation, with its constant."""

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """See MeanIoU."""
        return {**super().details(sums, examples, names), **_constant_iou(self.name, sums["confusion_KK"])}


class PartIoU(Metric):
    """Mean over parts of intersection over union; parts that are neither there nor predicted are left out."""

    name, unit = "part_miou", PERCENT

    def __init__(self, most_pixels: int, parts: Sequence[str]) -> None:
        self._most, self._parts = most_pixels, tuple(parts)

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {PARTS_CONFUSION: count_zeros(len(self._parts), len(self._parts))}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return {PARTS_CONFUSION: confusion(output.argmax(dim=1), target, len(self._parts))}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return float(iou_of(sums[PARTS_CONFUSION]).nanmean())

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`part_miou/<part>`."""
        del examples, names
        pairs = zip(self._parts, iou_of(sums[PARTS_CONFUSION]).tolist(), strict=True)
        each = {f"{self.name}/{part}": value for part, value in pairs if not math.isnan(value)}
        return {**each, **_constant_iou(self.name, sums[PARTS_CONFUSION])}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_counts(sums[PARTS_CONFUSION], examples * self._most)
        total = float(sums[PARTS_CONFUSION].double().sum())  # int64 may overflow
        refuse_unless(total <= examples * self._most, "more pixels than there are")


class DepthRMSE(Metric):
    """Root of the mean squared error of the depth; a prediction below 0 counts as 0."""

    name, higher_is_better = "depth_rmse", False

    def __init__(self, most_pixels: int) -> None:
        self._most = most_pixels

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        names = ("depth_error_sum", "depth_sum", "depth_square_sum")
        return {"depth_pixels": count_zeros(), **{name: sum_zero() for name in names}}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        known_BHW = known(DEPTH, target)
        found_P, truth_P = output[:, 0][known_BHW].double().clamp_min(0), target[known_BHW].double()
        return {
            "depth_pixels": known_BHW.sum(),
            "depth_error_sum": exact((found_P - truth_P).square()),
            "depth_sum": exact(truth_P),
            "depth_square_sum": exact(truth_P.square()),
        }

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return math.sqrt(_share(sums["depth_error_sum"], sums["depth_pixels"]))

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """The error of the mean depth."""
        del examples, names
        square = _share(sums["depth_square_sum"], sums["depth_pixels"])
        variance = square - _share(sums["depth_sum"], sums["depth_pixels"]) ** 2
        return _finite({f"{self.name}/{CONSTANT}": math.sqrt(max(0.0, variance))} if variance == variance else {})

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_counts(sums["depth_pixels"], examples * self._most)
        refuse_infinite(sums["depth_error_sum"], "the sum of squared errors of the depth")
        for name in ("depth_error_sum", "depth_square_sum"):
            refuse_unless(0 <= float(sums[name]) < math.inf, f"a sum of squares of {float(sums[name])}")
        pixels, total, square = (float(sums[name]) for name in ("depth_pixels", "depth_sum", "depth_square_sum"))
        slack = 1e-6 * (1 + square * pixels)  # terms are rounded
        fits = 0 <= total < math.inf and total**2 <= square * pixels + slack
        refuse_unless(fits, "a sum of depths that its squares do not allow")
        sums_of_pixels = ("depth_error_sum", "depth_sum", "depth_square_sum")
        refuse_unless(pixels > 0 or not any(float(sums[name]) for name in sums_of_pixels), "depths without pixels")


class NormalError(Metric):
    """Mean angle between predicted and true normal, in degrees: 2 atan2(|p - g|, |p + g|) of unit vectors."""

    name, higher_is_better, unit = "normal_error", False, "°"

    def __init__(self, most_pixels: int) -> None:
        self._most = most_pixels

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {
            "normal_pixels": count_zeros(),
            "normal_angle_sum": sum_zero(),
            "normal_angle_sum_D": torch.zeros(len(directions()), dtype=torch.float64),
        }

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric. The last one: the angles to each of a few constant directions."""
        known_BHW = known(NORMALS, target)
        truth_P3 = target.permute(0, 2, 3, 1)[known_BHW]
        angle_P = angles(output.permute(0, 2, 3, 1)[known_BHW], truth_P3)
        constant_D = [exact(angles(one_3.to(truth_P3).expand_as(truth_P3), truth_P3)) for one_3 in directions()]
        return {
            "normal_pixels": known_BHW.sum(),
            "normal_angle_sum": exact(angle_P),
            "normal_angle_sum_D": torch.stack(constant_D),
        }

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return _share(sums["normal_angle_sum"], sums["normal_pixels"])

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """The error of the best of the constant directions."""
        del examples, names
        least = _share(sums["normal_angle_sum_D"].min(), sums["normal_pixels"])
        return _finite({f"{self.name}/{CONSTANT}": least})

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        _check_counts(sums["normal_pixels"], examples * self._most)
        most = int(sums["normal_pixels"]) * (HALF_TURN + 1e-3)
        both = torch.cat([sums["normal_angle_sum"].reshape(1), sums["normal_angle_sum_D"]])
        refuse_unless(bool(((both >= 0) & (both <= most)).all()), "angles beyond half a turn")


class BinaryF(Metric):
    """F-measure of a map of yes and no at the best of `THRESHOLDS` for the whole data.

    (1 + b) P R / (b P + R), with b = beta^2. With a tolerance, a predicted pixel is right if a true one is at most
    that many pixels away (in both directions), and a true pixel is found if a predicted one is.
    """

    unit = PERCENT

    def __init__(self, name: str, kind: str, most_pixels: int, beta_squared: float, tolerance: int = 0) -> None:
        """`kind`: of the map. `tolerance`: in pixels."""
        self.name, self._kind, self._most = name, kind, most_pixels
        self._beta, self._tolerance = beta_squared, tolerance

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        each = {f"{self.name}_{what}_N": count_zeros(len(THRESHOLDS)) for what in ("guessed", "right", "found")}
        return each | {f"{self.name}_{what}": count_zeros() for what in ("pixels", "true", "near")}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric. `near`: pixels for which a prediction would be right."""
        known_BHW = known(self._kind, target)
        true_BHW = (target == 1) & known_BHW
        near_BHW = self._widened(true_BHW) & known_BHW
        share_BHW = output[:, 0].sigmoid()
        guessed, right, found = [], [], []
        for threshold in THRESHOLDS:
            guess_BHW = (share_BHW >= threshold) & known_BHW
            guessed.append(guess_BHW.sum())
            right.append((guess_BHW & near_BHW).sum())
            found.append((true_BHW & self._widened(guess_BHW)).sum())
        counts = {"pixels": known_BHW.sum(), "true": true_BHW.sum(), "near": near_BHW.sum()}
        each = {"guessed": guessed, "right": right, "found": found}
        return {f"{self.name}_{what}_N": torch.stack(values) for what, values in each.items()} | {
            f"{self.name}_{what}": value for what, value in counts.items()
        }

    def _widened(self, value_BHW: Tensor) -> Tensor:
        if not self._tolerance:
            return value_BHW
        side = 2 * self._tolerance + 1
        wide_B1HW = F.max_pool2d(value_BHW[:, None].float(), side, stride=1, padding=self._tolerance)
        return wide_B1HW[:, 0] > 0

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric. NaN where nothing is true."""
        del examples
        if not int(sums[f"{self.name}_true"]):
            return math.nan
        return float(self._of_each(sums).max())

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """The best threshold, and the measure of yes everywhere."""
        del examples, names
        true = int(sums[f"{self.name}_true"])
        if not true:
            return {}
        precision = _share(sums[f"{self.name}_near"], sums[f"{self.name}_pixels"])
        best = THRESHOLDS[int(self._of_each(sums).argmax())]
        constant = (1 + self._beta) * precision / (self._beta * precision + 1)
        return {f"{self.name}/{CONSTANT}": constant, f"{self.name}/threshold": best}

    def _of_each(self, sums: Mapping[str, Tensor]) -> Tensor:
        """float64 [N]; 0 where nothing is predicted."""
        right_N, guessed_N = sums[f"{self.name}_right_N"].double(), sums[f"{self.name}_guessed_N"].double()
        precision_N = right_N / guessed_N.clamp_min(1)
        recall_N = sums[f"{self.name}_found_N"].double() / sums[f"{self.name}_true"].double().clamp_min(1)
        below_N = self._beta * precision_N + recall_N
        return torch.where(below_N > 0, (1 + self._beta) * precision_N * recall_N / below_N, 0.0)

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        pixels, true, near = (sums[f"{self.name}_{what}"] for what in ("pixels", "true", "near"))
        guessed_N, right_N, found_N = (sums[f"{self.name}_{what}_N"] for what in ("guessed", "right", "found"))
        _check_counts(pixels, examples * self._most)
        for small, large, what in (
            (true, near, "true pixels that are not near themselves"),
            (near, pixels, "more true pixels than there are"),
            (guessed_N, pixels, "more predicted pixels than there are"),
            (right_N, guessed_N, "more right pixels than predicted ones"),
            (right_N, near, "more right pixels than near ones"),
            (found_N, true, "more found pixels than true ones"),
        ):
            refuse_unless(bool(((small >= 0) & (small <= large)).all()), what)


def edge_f(most_pixels: int, tolerance: int) -> BinaryF:
    """The F-measure of edges, precision and recall alike."""
    return BinaryF("edge_f", EDGES, most_pixels, 1.0, tolerance)


def saliency_f(most_pixels: int) -> BinaryF:
    """The largest F-measure of saliency, precision above recall (beta^2 = 0.3)."""
    return BinaryF("saliency_f", SALIENCY, most_pixels, 0.3)


def angles(one_P3: Tensor, other_P3: Tensor) -> Tensor:
    """float64 [P]: the angle between two vectors in degrees; exact also near 0 and 180."""
    one_P3, other_P3 = F.normalize(one_P3.double(), dim=1), F.normalize(other_P3.double(), dim=1)
    apart_P = torch.linalg.vector_norm(one_P3 - other_P3, dim=1)
    along_P = torch.linalg.vector_norm(one_P3 + other_P3, dim=1)
    return torch.rad2deg(2 * torch.atan2(apart_P, along_P))


def directions() -> Tensor:
    """float32 [17, 3]: towards the camera, and tilted by 20 and 45 degrees in eight directions."""
    found = [(0.0, 0.0, 1.0)]
    for tilt in (math.radians(20), math.radians(45)):
        for turn in (math.tau * step / 8 for step in range(8)):
            found.append((math.sin(tilt) * math.cos(turn), math.sin(tilt) * math.sin(turn), math.cos(tilt)))
    return torch.tensor(found)


def _constant_iou(name: str, confusion_KK: Tensor) -> dict[str, float]:
    """What the most frequent class everywhere has: its share of the pixels, and 0 for all other classes there."""
    count_K = confusion_KK.sum(dim=1).double()
    there = int((count_K > 0).sum())
    return {f"{name}/{CONSTANT}": float(count_K.max() / count_K.sum()) / there} if there else {}


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part) / int(whole) if int(whole) else math.nan


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _check_counts(count: Tensor, most: int) -> None:
    refuse_unless(bool(((count >= 0) & (count <= most)).all()), f"a number of pixels beyond 0 to {most}")
