"""The segments of one picture, in the truth and in a prediction, and which of them match.

Used by the metrics and by the pictures for people. Knows neither sums nor files.

Legend: H height, W width, S segments of one side, T of the truth, P predicted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Maps = Mapping[str, Any]  # `semantic`, `instance` and `part`: integer arrays [H, W]

UNLABELLED = BACKGROUND = 0  # of parts: in the truth not labelled, in a prediction outside all parts
NONE = -1  # no segment, no crowd


@dataclass(frozen=True)
class LabelIds:
    """Which class ids are things and which are stuff, and the part ids of the classes that have parts."""

    things: tuple[int, ...]
    stuff: tuple[int, ...]
    parts: Mapping[int, tuple[int, ...]]
    void: int

    @property
    def classes(self) -> tuple[int, ...]:
        """Things, then stuff."""
        return self.things + self.stuff

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(class, part), class by class."""
        return tuple((known, part) for known, ids in self.parts.items() for part in ids)


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one side: `number_HW` is the number of each pixel's segment or NONE, `class_S` their classes."""

    number_HW: Ints
    class_S: Ints

    @cached_property
    def area_S(self) -> Ints:
        """Pixels of each segment."""
        return self.counts(np.ones(self.number_HW.shape, dtype=bool))

    @cached_property
    def class_HW(self) -> Ints:
        """Class of each pixel's segment, or NONE."""
        found: Ints = np.append(self.class_S, NONE)[self.number_HW]  # number NONE is the last entry
        return found

    def counts(self, mask_HW: Mask) -> Ints:
        """Of each segment, the pixels that are in the mask."""
        return np.bincount(self.number_HW[mask_HW & (self.number_HW >= 0)], minlength=len(self.class_S))


@dataclass(frozen=True, eq=False)
class Overlap:
    """One picture: truth and prediction.

    Attributes:
        truth: its segments; crowd is none.
        guess: the predicted segments.
        void_HW: where the truth has no class.
        crowd_HW: class of the crowd a pixel belongs to, or NONE.
        truth_part_HW: labelled parts, UNLABELLED elsewhere.
        guess_part_HW: predicted parts.
    """

    truth: Segments
    guess: Segments
    void_HW: Mask
    crowd_HW: Ints
    truth_part_HW: Ints
    guess_part_HW: Ints

    @cached_property
    def iou_TP(self) -> Floats:
        """Intersection over union, where void pixels of the prediction do not count; 0 for different classes."""
        truth, guess = self.truth, self.guess
        both_HW = (truth.number_HW >= 0) & (guess.number_HW >= 0)
        shape = (len(truth.class_S), len(guess.class_S))
        pair = truth.number_HW[both_HW] * shape[1] + guess.number_HW[both_HW]
        common_TP = np.bincount(pair, minlength=shape[0] * shape[1]).reshape(shape)
        judged_P = guess.area_S - guess.counts(self.void_HW)
        union_TP = truth.area_S[:, None] + judged_P - common_TP
        found: Floats = np.where(truth.class_S[:, None] == guess.class_S, common_TP / union_TP, 0.0)
        return found

    @cached_property
    def matches(self) -> list[tuple[int, int]]:
        """(segment of the truth, predicted segment) with IoU > 0.5; no segment can be in two."""
        return [(int(t), int(p)) for t, p in zip(*np.nonzero(self.iou_TP > 0.5), strict=True)]

    @cached_property
    def excused_P(self) -> Mask:
        """Predicted segments that are void or crowd of their class to more than half: no errors if unmatched."""
        guess = self.guess
        excused_HW = self.void_HW | ((self.crowd_HW == guess.class_HW) & (self.crowd_HW != NONE))
        found: Mask = guess.counts(excused_HW) * 2 > guess.area_S
        return found

    def part_iou(self, match: tuple[int, int], unknown: int) -> float:
        """Mean IoU over the labels {outside} and parts of a match, `unknown` is no label of the mean.

        Judged are all pixels of the picture but void, crowd of the class, and pixels of the segment of the truth
        that have no part label.
        """
        t, p = match
        inside_T, inside_P = self.truth.number_HW == t, self.guess.number_HW == p
        ignored = self.void_HW | (self.crowd_HW == self.truth.class_S[t])
        judged = ~(ignored | (inside_T & (self.truth_part_HW == UNLABELLED)))
        right = np.where(inside_T, self.truth_part_HW, BACKGROUND)[judged]
        guess = np.where(inside_P, self.guess_part_HW, BACKGROUND)[judged]
        labels = np.union1d(right, guess)
        each = [_iou(right == label, guess == label) for label in labels if label != unknown]
        return float(np.mean(each))


def overlap(truth: Maps, guess: Maps, ids: LabelIds) -> Overlap:
    """The overlap of two sets of maps. Raises ValueError if shapes differ or values are no integers."""
    right, found = _arrays(truth), _arrays(guess)
    if right["semantic"].shape != found["semantic"].shape:
        raise ValueError(
            f"truth {right['semantic'].shape} and prediction {found['semantic'].shape} differ in size"
        )
    crowd_HW = np.isin(right["semantic"], ids.things) & (right["instance"] < 0)
    return Overlap(
        truth=_segments(right, ids),
        guess=_segments(found, ids),
        void_HW=~np.isin(right["semantic"], ids.classes),
        crowd_HW=np.where(crowd_HW, right["semantic"], NONE),
        truth_part_HW=np.where(right["part"] == ids.void, UNLABELLED, right["part"]),
        guess_part_HW=found["part"],
    )


def without_unlabelled(given: Overlap, ids: LabelIds) -> Overlap:
    """The same picture in which segments of classes with parts that have no part label at all are crowd."""
    truth = given.truth
    labelled_S = truth.counts(given.truth_part_HW != UNLABELLED) > 0
    kept_S = labelled_S | ~np.isin(truth.class_S, list(ids.parts))
    number_S = np.append(np.where(kept_S, kept_S.cumsum() - 1, NONE), NONE)  # number NONE is the last entry
    number_HW = number_S[truth.number_HW]
    gone_HW = (truth.number_HW >= 0) & (number_HW < 0)
    crowd_HW = np.where(gone_HW, truth.class_HW, given.crowd_HW)
    kept = Segments(number_HW=number_HW, class_S=truth.class_S[kept_S])
    return replace(given, truth=kept, crowd_HW=crowd_HW)


def _arrays(maps: Maps) -> dict[str, Ints]:
    found = {name: np.asarray(maps[name]) for name in ("semantic", "instance", "part")}
    for name, value in found.items():
        if value.ndim != 2 or value.shape != found["semantic"].shape or value.dtype.kind not in "iu":
            raise ValueError(f"{name}: {value.dtype} {value.shape}, expected integers [H, W] like the other maps")
    return {name: value.astype(np.int64) for name, value in found.items()}


def _segments(maps: Mapping[str, Ints], ids: LabelIds) -> Segments:
    """A segment is a class and an instance; all stuff of a class without instances is instance 0."""
    semantic_HW, instance_HW = maps["semantic"], maps["instance"]
    instance_HW = np.where(np.isin(semantic_HW, ids.stuff), instance_HW.clip(min=0), instance_HW)
    found_HW = np.isin(semantic_HW, ids.classes) & (instance_HW >= 0)
    instances = int(instance_HW.max(initial=0)) + 1
    code_S, number_M = np.unique(semantic_HW[found_HW] * instances + instance_HW[found_HW], return_inverse=True)
    number_HW = np.full(semantic_HW.shape, NONE)
    number_HW[found_HW] = number_M
    return Segments(number_HW=number_HW, class_S=code_S // instances)


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def label_ids(
    things: Sequence[int], stuff: Sequence[int], parts: Mapping[int, Sequence[int]], void: int
) -> LabelIds:
    """Checked ids. A class with one part alone has none: that part is the object. Raises ValueError."""
    classes = (*things, *stuff)
    if len({*classes, void}) <= len(classes) or min(classes, default=0) < 0:
        raise ValueError(f"class ids {sorted(classes)} must differ from each other and from void ({void})")
    if not set(parts) <= set(classes):
        raise ValueError(f"parts of {sorted(set(parts) - set(classes))}, which are no classes")
    for known, own in parts.items():
        if len({*own, BACKGROUND, void}) < len(own) + 2:
            raise ValueError(f"part ids {list(own)} of class {known} must differ, and be neither 0 nor {void}")
    several = {known: tuple(own) for known, own in parts.items() if len(own) > 1}
    return LabelIds(things=tuple(things), stuff=tuple(stuff), parts=several, void=void)
