"""PartPQ, PQ, part mIoU and their geometric mean as metrics of a task: sums that the server adds and checks.

All of them share the sums of `PartQuality`. Output and target are maps [B, 3, H, W] (`merging.py`).

Legend: B batch, C classes, H height, W width, L parts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fednc.common.tasks.metric_info import PERCENT
from fednc.common.tasks.metrics import Metric, Stats, refuse_unless
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.merging import INSTANCE, PART, SEMANTIC
from fednc.tasks.panoptic.metrics import FN, FP, GUESS, HIT, TP, TRUTH, PartQuality, Quality


def empty(columns: Columns) -> PartQuality:
    """Over no pictures, with label values as ids."""
    return PartQuality(columns.things, columns.stuff, columns.part_ids)


def maps_of(value_3HW: Tensor) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """The maps of one picture by the names that `PartQuality` knows."""
    numbers = value_3HW.long().cpu().numpy()
    return {"semantic": numbers[SEMANTIC], "instance": numbers[INSTANCE], "part": numbers[PART]}


class PartMetric(Metric):
    """A metric that follows from the sums of `PartQuality`."""

    unit = PERCENT

    def __init__(self, columns: Columns, pixels: int) -> None:
        """`pixels`: of a picture; more in the sums of a client are refused."""
        self.columns, self.pixels = columns, pixels

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {name: torch.from_numpy(value) for name, value in empty(self.columns).sums.items()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        found = empty(self.columns)
        for guess, truth in zip(output, target, strict=True):
            found.add(maps_of(truth), maps_of(guess))
        return {name: torch.from_numpy(value) for name, value in found.sums.items()}

    def quality(self, sums: Mapping[str, Tensor]) -> Quality:
        """What follows from the sums."""
        found = empty(self.columns)
        found.sums = {name: sums[name].numpy() for name in found.sums}
        return found.result()

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return self.of(self.quality(sums))

    @abstractmethod
    def of(self, quality: Quality) -> float:
        """The value among those of `PartQuality`."""

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        most = examples * self.pixels
        for kind in ("part", "whole"):
            iou_C, count_C3 = sums[f"{kind}_iou_C"], sums[f"{kind}_count_C3"]
            refuse_unless(bool(((count_C3 >= 0) & (count_C3 <= most)).all()), "more segments than pixels")
            matched_C = count_C3[:, TP]
            refuse_unless(bool(((iou_C >= 0) & (iou_C <= matched_C)).all()), "an IoU above 1")
            for errors in (FP, FN):  # segments of a side do not overlap
                refuse_unless(int((matched_C + count_C3[:, errors]).sum()) <= most, "more segments than pixels")
        pixel_L3 = sums["part_pixel_L3"]
        refuse_unless(bool(((pixel_L3 >= 0) & (pixel_L3 <= most)).all()), "more pixels of a part than there are")
        least_L = pixel_L3[:, [TRUTH, GUESS]].amin(dim=1) if len(pixel_L3) else pixel_L3[:, HIT]
        refuse_unless(bool((pixel_L3[:, HIT] <= least_L).all()), "more hits than pixels of a part")
        for side in (TRUTH, GUESS):
            refuse_unless(int(pixel_L3[:, side].sum()) <= most, "more pixels of parts than there are")


class PartPQ(PartMetric):
    """PartPQ; also for classes with and without parts, and for each class."""

    name = "part_pq"

    def of(self, quality: Quality) -> float:
        """See PartMetric."""
        return quality.all

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`part_pq_parts`, `part_pq_no_parts` and `part_pq/<class>`."""
        del examples
        found = self.quality(sums)
        each = {
            f"{self.name}/{names[known]}": iou / (hits + (extra + missed) / 2)
            for known, (iou, hits, extra, missed) in found.per_class.items()
            if hits + extra + missed
        }
        groups = {f"{self.name}_parts": found.parts, f"{self.name}_no_parts": found.no_parts}
        return {**{name: value for name, value in groups.items() if value == value}, **each}


class PQ(PartMetric):
    """Panoptic quality; also of things and of stuff, and its factors."""

    name = "pq"

    def of(self, quality: Quality) -> float:
        """See PartMetric."""
        return quality.pq

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`pq_things`, `pq_stuff`, `sq`, `rq`."""
        del examples, names
        found = self.quality(sums)
        values = {"pq_things": found.pq_things, "pq_stuff": found.pq_stuff, "sq": found.sq, "rq": found.rq}
        return {name: value for name, value in values.items() if value == value}


class PartMeanIoU(PartMetric):
    """Mean over parts of the intersection over union of their pixels; a part of a wrong whole is wrong."""

    name = "part_miou"

    def of(self, quality: Quality) -> float:
        """See PartMetric."""
        return quality.part_miou

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`part_iou/<class>/<part>` for each part that occurs or is predicted."""
        del examples
        first = len(self.columns.classes)
        found = self.quality(sums).part_iou
        return {f"part_iou/{names[first + self.columns.parts.index(pair)]}": iou for pair, iou in found.items()}


class PartWhole(PartMetric):
    """Geometric mean of part mIoU and PQ."""

    name = "pwq_gm"

    def of(self, quality: Quality) -> float:
        """See PartMetric."""
        return quality.pwq_gm


ALL: tuple[type[PartMetric], ...] = (PartPQ, PQ, PartMeanIoU, PartWhole)
