"""What the queries of a batch should find: the objects, stuff and parts of its maps, at the size of the masks.

Made by data set (to count) and task (to train). Depends on maps alone, so counts are the same on every machine.

Legend: B batch, C classes, Q thing queries, S stuff and P part queries, h and w height and width of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.tasks.dense.maps import VOID
from fednc.tasks.panoptic.columns import Columns

STRIDE = 2  # pixels of the picture for one of a mask
_FACTOR = 1 << 16  # instances of a picture are below


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Objects beyond the `counted_B` first are padding.

    Attributes:
        label_Bhw: int64, classes; VOID where unknown, and in crowds.
        part_Bhw: int64, value of the part in its class; 0 outside parts, VOID where unknown.
        thing_BQhw: bool, objects: the largest ones, largest first.
        class_BQ: int64, their classes.
        counted_B: int64, their number.
        stuff_BShw: bool.
        part_BPhw: bool.
        told_BN: bool, queries of which it is known what they should find, if only nothing.
    """

    label_Bhw: Tensor
    part_Bhw: Tensor
    thing_BQhw: Tensor
    class_BQ: Tensor
    counted_B: Tensor
    stuff_BShw: Tensor
    part_BPhw: Tensor
    told_BN: Tensor

    @property
    def judged_Bhw(self) -> Tensor:
        """bool: pixels with a class."""
        return self.label_Bhw != VOID

    @property
    def judged_parts_Bhw(self) -> Tensor:
        """bool: pixels of which it is known whether they are a part."""
        return self.judged_Bhw & (self.part_Bhw != VOID)

    def members(self, columns: Columns) -> Tensor:
        """int64 [B, K]: how many queries each column should have in each picture."""
        found = torch.zeros(len(self.class_BQ), columns.space, dtype=torch.int64, device=self.class_BQ.device)
        is_object_BQ = self.is_object_BQ
        found.scatter_add_(1, self.class_BQ.where(is_object_BQ, 0), is_object_BQ.long())
        has_BM = self.has_own_BM
        found[:, columns.own_M.to(found.device)] += has_BM.long()
        found[:, columns.no_object] = self.told_BN.sum(dim=1) - found.sum(dim=1)
        return found

    @property
    def is_object_BQ(self) -> Tensor:
        """bool: objects that are no padding."""
        place_Q = torch.arange(self.class_BQ.shape[1], device=self.class_BQ.device)
        return place_Q < self.counted_B[:, None]

    @property
    def own_BMhw(self) -> Tensor:
        """bool [B, S + P, h, w]: what stuff and part queries should find."""
        return torch.cat([self.stuff_BShw, self.part_BPhw], dim=1)

    @property
    def has_own_BM(self) -> Tensor:
        """bool [B, S + P]: whether there is anything to find."""
        return self.own_BMhw.flatten(2).any(dim=2)


def targets_of(maps: Sequence[Tensor], columns: Columns) -> Targets:
    """The targets of the maps of a batch: labels, instances and parts, each [B, H, W]."""
    label, instance, part = (each[:, ::STRIDE, ::STRIDE].long() for each in maps)
    label = _without_crowds(label, instance, columns)
    wholes = tuple(columns.part_ids)
    known_parts_B = (part != VOID).flatten(1).any(dim=1)
    # A pixel of a class with parts that has no part is not labelled; elsewhere there is no part.
    part = torch.where(_among(label, wholes) & (part == 0), VOID, part)
    part = torch.where(_among(label, wholes) | ~known_parts_B[:, None, None], part, 0)
    part = torch.where(known_parts_B[:, None, None], part, VOID)
    thing_BQhw, class_BQ, counted_B = _objects(label, instance, columns)
    stuff = [label == value for value in columns.stuff]
    parts = [(label == whole) & (part == value) for whole, value in columns.parts]
    none = label.new_zeros(len(label), 0, *label.shape[1:], dtype=torch.bool)
    part_BPhw = torch.stack(parts, dim=1) if parts else none
    has_BP = part_BPhw.flatten(2).any(dim=2)
    return Targets(
        label_Bhw=label,
        part_Bhw=part,
        thing_BQhw=thing_BQhw,
        class_BQ=class_BQ,
        counted_B=counted_B,
        stuff_BShw=torch.stack(stuff, dim=1) if stuff else none,
        part_BPhw=part_BPhw,
        told_BN=_told(maps, columns, label != VOID, counted_B > 0, known_parts_B, has_BP),
    )


def parts_labelled(maps: Sequence[Tensor], columns: Columns) -> Tensor:
    """bool [B]: pictures of which a mask has a pixel of a labelled part."""
    label, instance, part = (each[:, ::STRIDE, ::STRIDE].long() for each in maps)
    label = _without_crowds(label, instance, columns)
    is_part = _among(label, tuple(columns.part_ids)) & (part != 0) & (part != VOID)
    return is_part.flatten(1).any(dim=1)


def _without_crowds(label: Tensor, instance: Tensor, columns: Columns) -> Tensor:
    return torch.where(_among(label, columns.things) & (instance < 0), VOID, label)


def _told(
    maps: Sequence[Tensor],
    columns: Columns,
    judged_Bhw: Tensor,
    has_things_B: Tensor,
    known_parts_B: Tensor,
    has_BP: Tensor,
) -> Tensor:
    """bool [B, N]. A query is told of nothing only where nothing may hide.

    A picture without a judged pixel says nothing at all. If all things of it are crowds, there are objects, but
    nobody knows which. Where some of a class, or a crowd of it, has no part label, its parts may be there.
    """
    label, instance, part = maps
    crowd = _among(label, columns.things) & (instance < 0)
    judged_B = judged_Bhw.flatten(1).any(dim=1)
    things_B = judged_B & (has_things_B | ~crowd.flatten(1).any(dim=1))
    unlabelled = (part == 0) | (part == VOID) | crowd
    hides_B = {whole: ((label == whole) & unlabelled).flatten(1).any(dim=1) for whole in columns.part_ids}
    told = [things_B] * columns.queries + [judged_B] * len(columns.stuff)
    for row, (whole, _) in enumerate(columns.parts):
        told.append(judged_B & known_parts_B & (has_BP[:, row] | ~hides_B[whole]))
    return torch.stack(told, dim=1)


def _objects(label_Bhw: Tensor, instance_Bhw: Tensor, columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    mask_BQhw = label_Bhw.new_zeros(len(label_Bhw), columns.queries, *label_Bhw.shape[1:], dtype=torch.bool)
    class_BQ = label_Bhw.new_zeros(mask_BQhw.shape[:2])
    counted_B = label_Bhw.new_zeros(len(label_Bhw))
    code_Bhw = torch.where(_among(label_Bhw, columns.things), label_Bhw * _FACTOR + instance_Bhw, -1)
    for number, code_hw in enumerate(code_Bhw):
        code_O, area_O = torch.unique(code_hw[code_hw >= 0], return_counts=True)
        code_O = code_O[area_O.argsort(descending=True, stable=True)[: columns.queries]]
        mask_BQhw[number, : len(code_O)] = code_hw == code_O[:, None, None]
        class_BQ[number, : len(code_O)] = code_O // _FACTOR
        counted_B[number] = len(code_O)
    return mask_BQhw, class_BQ, counted_B


def _among(value: Tensor, chosen: tuple[int, ...]) -> Tensor:
    return torch.isin(value, torch.tensor(chosen, dtype=value.dtype, device=value.device))
