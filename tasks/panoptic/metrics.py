"""Quality of panoptic segmentations with parts: PQ, PartPQ, mean IoU of parts, all from additive sums.

Used by the task, and alone: `PartQuality` needs nothing but arrays. Knows neither model nor files.

PartPQ is that of de Geus et al., Part-aware Panoptic Segmentation (CVPR 2021), with the rules of its public
evaluator for regions that are void, crowd or without part labels.

Legend: C classes, L pairs (class, part).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednc.tasks.panoptic.segments import UNLABELLED, Floats, Maps, Overlap, label_ids, overlap, without_unlabelled

Sums = dict[str, np.ndarray[Any, Any]]
PerClass = Mapping[int, tuple[float, int, int, int]]

VOID = 255
PART, WHOLE = "part", "whole"  # what is judged: segments with their parts, or segments alone
TP, FP, FN = range(3)  # columns of counts
HIT, TRUTH, GUESS = range(3)  # columns of part pixels
# Each IoU is rounded to a multiple of this. The sums are then exact in float64, in whatever order they are added,
# for up to two million segments of a class.
IOU_STEP = 2.0**-32


@dataclass(frozen=True)
class Quality:
    """What `PartQuality.result` returns. Each value is also found by its name, as in `quality["per_class"]`.

    Attributes:
        per_class: by class id (sum of the IoU of matches, TP, FP, FN), as PartPQ counts them.
        all: PartPQ, the mean over classes with TP + FP + FN > 0; NaN if there is none.
        parts: the same over classes with parts.
        no_parts: the same over classes without parts.
        whole_per_class: as `per_class`, for PQ: IoU of segments; those without part labels count too.
        pq: PQ, the mean over classes.
        sq: mean over classes of the mean IoU of matches.
        rq: mean over classes of TP / (TP + FP / 2 + FN / 2).
        pq_things: PQ of the things.
        pq_stuff: PQ of the stuff.
        part_iou: by (class id, part id) intersection over union of pixels, where the part occurs or is predicted.
        part_miou: the mean of `part_iou`.
        pwq_gm: geometric mean of `part_miou` and `pq`; it is 0 if no part is right, which PartPQ does not see. A
            definition of this project: not to be compared with published values of PWQ.
    """

    per_class: PerClass
    all: float
    parts: float
    no_parts: float
    whole_per_class: PerClass
    pq: float
    sq: float
    rq: float
    pq_things: float
    pq_stuff: float
    part_iou: Mapping[tuple[int, int], float]
    part_miou: float
    pwq_gm: float

    def __getitem__(self, name: str) -> Any:
        """The value of that name."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)


class PartQuality:
    """Adds up pictures. The sums of parts of the data add up to those of the whole, bit for bit.

    Maps of a picture are integer arrays [H, W]: `semantic` class ids, `instance` numbers of instances (-1: none),
    `part` part ids. In the truth a semantic value that is no class is void, a thing without instance is crowd, and
    a part that is void or 0 is not labelled. In a prediction a thing without instance is no segment, part 0 is
    outside all parts and part void is unknown. All stuff of a class is one segment, unless it has instances.

    Segments of one class match if their IoU is above 0.5. Void pixels of the prediction are not in the union. An
    unmatched prediction that is void or crowd of its class to more than half is no false positive. In PartPQ, a
    segment of a class with parts that has no part label is crowd, and the IoU of a match is that of its labels
    (`Overlap.part_iou`).
    """

    def __init__(
        self,
        things: Sequence[int],
        stuff: Sequence[int],
        parts: Mapping[int, Sequence[int]],
        void: int = VOID,
    ) -> None:
        """`parts`: ids of the parts of each class that has several. Raises ValueError if ids contradict."""
        self.ids = label_ids(things, stuff, parts, void)
        self.sums = self.zeros()

    def zeros(self) -> Sums:
        """The sums over no pictures."""
        classes = len(self.ids.classes)
        ious = {f"{kind}_iou_C": np.zeros(classes) for kind in (PART, WHOLE)}
        counts = {f"{kind}_count_C3": np.zeros((classes, 3), np.int64) for kind in (PART, WHOLE)}
        return {**ious, **counts, "part_pixel_L3": np.zeros((len(self.ids.pairs), 3), np.int64)}

    def add(self, truth: Maps, prediction: Maps) -> None:
        """Add one picture. Raises ValueError if the maps differ in size or are not integers."""
        given = overlap(truth, prediction, self.ids)
        labelled = without_unlabelled(given, self.ids)
        self._add(WHOLE, given, [given.iou_TP[match] for match in given.matches])
        self._add(PART, labelled, [self._iou(labelled, match) for match in labelled.matches])
        self._add_part_pixels(given)

    def merge(self, other: PartQuality) -> None:
        """Add the sums of other pictures. Raises ValueError if they are of other classes or parts."""
        if self.ids != other.ids:
            raise ValueError("the other sums are of other classes or parts")
        for name, value in other.sums.items():
            self.sums[name] += value

    def result(self) -> Quality:
        """What follows from the sums."""
        ids = self.ids
        has_parts_C, is_thing_C = np.isin(ids.classes, list(ids.parts)), np.isin(ids.classes, ids.things)
        part_pq_C, _, _ = self._values(PART)
        pq_C, sq_C, rq_C = self._values(WHOLE)
        part_iou = self.part_iou()
        part_miou, pq = _mean(list(part_iou.values())), _mean(pq_C)
        return Quality(
            per_class=self._per_class(PART),
            all=_mean(part_pq_C),
            parts=_mean(part_pq_C[has_parts_C]),
            no_parts=_mean(part_pq_C[~has_parts_C]),
            whole_per_class=self._per_class(WHOLE),
            pq=pq,
            sq=_mean(sq_C),
            rq=_mean(rq_C),
            pq_things=_mean(pq_C[is_thing_C]),
            pq_stuff=_mean(pq_C[~is_thing_C]),
            part_iou=part_iou,
            part_miou=part_miou,
            pwq_gm=math.sqrt(part_miou * pq),
        )

    def part_iou(self) -> dict[tuple[int, int], float]:
        """Intersection over union of the pixels of each part that occurs or is predicted."""
        pixel_L3 = self.sums["part_pixel_L3"]
        union_L = pixel_L3[:, TRUTH] + pixel_L3[:, GUESS] - pixel_L3[:, HIT]
        rows = zip(self.ids.pairs, pixel_L3[:, HIT].tolist(), union_L.tolist(), strict=True)
        return {pair: hit / union for pair, hit, union in rows if union}

    def _per_class(self, kind: str) -> PerClass:
        rows = zip(self.sums[f"{kind}_iou_C"].tolist(), self.sums[f"{kind}_count_C3"].tolist(), strict=True)
        return {known: (iou, *counts) for known, (iou, counts) in zip(self.ids.classes, rows, strict=True)}

    def _values(self, kind: str) -> tuple[Floats, Floats, Floats]:
        """Quality, mean IoU of matches (0 without one), F1 of matches; NaN for a class without any segment."""
        iou_C, count_C3 = self.sums[f"{kind}_iou_C"], self.sums[f"{kind}_count_C3"]
        matched_C = count_C3[:, TP]
        weight_C = np.where(count_C3.any(axis=1), matched_C + (count_C3[:, FP] + count_C3[:, FN]) / 2, math.nan)
        # Where nothing matched the sum is 0, and so is the mean.
        return iou_C / weight_C, iou_C / matched_C.clip(min=1) + 0 * weight_C, matched_C / weight_C

    # ---- sums of a picture -----------------------------------------------------------------------------------

    def _iou(self, given: Overlap, match: tuple[int, int]) -> float:
        has_parts = int(given.truth.class_S[match[0]]) in self.ids.parts
        return given.part_iou(match, self.ids.void) if has_parts else float(given.iou_TP[match])

    def _add(self, kind: str, given: Overlap, iou_of_match: Sequence[float]) -> None:
        iou_C, count_C3 = self.sums[f"{kind}_iou_C"], self.sums[f"{kind}_count_C3"]
        place = {known: place for place, known in enumerate(self.ids.classes)}
        truth_T = [place[known] for known in given.truth.class_S.tolist()]
        guess_P = [place[known] for known in given.guess.class_S.tolist()]
        for (t, _), iou in zip(given.matches, iou_of_match, strict=True):
            iou_C[truth_T[t]] += round(iou / IOU_STEP) * IOU_STEP
            count_C3[truth_T[t], TP] += 1
        found_T, found_P = {t for t, _ in given.matches}, {p for _, p in given.matches}
        for t in set(range(len(truth_T))) - found_T:
            count_C3[truth_T[t], FN] += 1
        for p in set(np.flatnonzero(~given.excused_P).tolist()) - found_P:
            count_C3[guess_P[p], FP] += 1

    def _add_part_pixels(self, given: Overlap) -> None:
        """Pixels of each part of each class, by label and by prediction; a part of a wrong whole is wrong."""
        truth_HW, guess_HW = given.truth.class_HW, given.guess.class_HW
        unlabelled_HW = np.isin(truth_HW, list(self.ids.parts)) & (given.truth_part_HW == UNLABELLED)
        judged_HW = ~(given.void_HW | (given.crowd_HW >= 0) | unlabelled_HW)
        for row, (known, part) in enumerate(self.ids.pairs):
            right_HW = judged_HW & (truth_HW == known) & (given.truth_part_HW == part)
            found_HW = judged_HW & (guess_HW == known) & (given.guess_part_HW == part)
            hits = (right_HW & found_HW).sum()
            self.sums["part_pixel_L3"][row] += np.array([hits, right_HW.sum(), found_HW.sum()])


def _mean(values: Sequence[float] | Floats) -> float:
    """The mean without NaN; NaN if nothing is left."""
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
