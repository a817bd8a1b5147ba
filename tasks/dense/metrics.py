"""Metrics of a class for every pixel, all from one confusion matrix, which is additive.

Used by dense tasks. Output is scores [B, K, H, W], target is labels [B, H, W], `VOID` where a pixel is not judged.

Legend: B batch, H height, W width, K label space; row k of a confusion matrix holds the pixels whose label is k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.tasks.metric_info import PERCENT
from fednc.common.tasks.metrics import Metric, Stats, count_zeros, exact, refuse_unless, sum_zero
from fednc.tasks.dense.maps import VOID

CONFUSION = "confusion_KK"


def confusion(guess_BHW: Tensor, label_BHW: Tensor, label_space: int) -> Tensor:
    """int64 [K, K]: pixels by label (row) and prediction (column)."""
    known_BHW = label_BHW != VOID
    pair_P = label_BHW[known_BHW] * label_space + guess_BHW[known_BHW]
    return torch.bincount(pair_P, minlength=label_space**2).reshape(label_space, label_space)


def iou_of(confusion_KK: Tensor) -> Tensor:
    """float64 [K]: intersection over union; NaN for a class that is neither a label nor predicted anywhere."""
    hit_K = confusion_KK.diagonal().double()
    return hit_K / (confusion_KK.sum(dim=0) + confusion_KK.sum(dim=1) - hit_K)  # 0 / 0 is NaN


class _OfConfusion(Metric):
    """A metric that follows from the confusion matrix. Metrics of one task share the matrix."""

    unit = PERCENT

    def __init__(self, most_pixels: int) -> None:
        """`most_pixels`: pixels of a picture; more in the sums of a client are refused."""
        self.most_pixels = most_pixels

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {CONFUSION: count_zeros(label_space, label_space)}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return {CONFUSION: confusion(output.argmax(dim=1), target, output.shape[1])}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        found, most = sums[CONFUSION], examples * self.most_pixels
        refuse_unless(bool((found >= 0).all()), "a negative number of pixels")
        # As float64: the total of absurd counts may overflow 64 bits.
        refuse_unless(float(found.double().sum()) <= most, f"more pixels than {examples} pictures have")


class MeanIoU(_OfConfusion):
    """Mean over classes of intersection over union; classes that are neither labels nor predicted are left out.

    Also for each class (`miou/<class>`) and for the groups head, common and tail, if any are named.
    """

    name = "miou"

    def __init__(self, most_pixels: int, common: Sequence[str] = (), tail: Sequence[str] = ()) -> None:
        """`common`, `tail`: classes of these groups, by name; all others are the head."""
        super().__init__(most_pixels)
        self._common, self._tail = frozenset(common), frozenset(tail)

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return _mean(iou_of(sums[CONFUSION]).tolist())

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`miou/<class>` for each class that occurs; `miou_head`, `miou_common` and `miou_tail`."""
        del examples
        iou = dict(zip(names, iou_of(sums[CONFUSION]).tolist(), strict=False))
        found = {f"{self.name}/{name}": value for name, value in iou.items() if not math.isnan(value)}
        if self._common or self._tail:
            groups = {"common": self._common, "tail": self._tail}
            groups["head"] = frozenset(names) - self._common - self._tail
            for group, members in groups.items():
                value = _mean([iou[name] for name in names if name in members])
                found |= {} if math.isnan(value) else {f"{self.name}_{group}": value}
        return found


class PixelAccuracy(_OfConfusion):
    """Share of labelled pixels that have the right class; `class_accuracy` is the mean of that over classes."""

    name = "pixel_accuracy"

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        found = sums[CONFUSION]
        total = int(found.sum())
        return int(found.diagonal().sum()) / total if total else math.nan

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`class_accuracy`."""
        del examples, names
        found = sums[CONFUSION]
        value = _mean((found.diagonal().double() / found.sum(dim=1)).tolist())
        return {} if math.isnan(value) else {"class_accuracy": value}


class PixelLoss(_OfConfusion):
    """Mean cross-entropy over labelled pixels. Infinite if a pixel has a class without a score yet."""

    name, higher_is_better, unit = "loss", False, ""

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        return {"pixel_loss_sum": sum_zero(), **super().zeros(label_space)}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        loss_BHW = F.cross_entropy(output, target, reduction="none", ignore_index=VOID)
        return {"pixel_loss_sum": exact(loss_BHW), **super().sums(output, target)}

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        total = int(sums[CONFUSION].sum())
        return float(sums["pixel_loss_sum"]) / total if total else math.nan

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        super().check(sums, examples)
        loss, pixels = sums["pixel_loss_sum"], bool(sums[CONFUSION].any())
        refuse_unless(bool(loss >= 0), "a loss below 0")
        refuse_unless(pixels or not bool(loss), "a loss without pixels")


def _mean(values: Sequence[float]) -> float:
    """The mean without NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
