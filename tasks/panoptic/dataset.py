"""The pictures of one client with their objects and parts.

Built by the task from what a reader gives. Members of a class are objects, stuff and parts of pictures, and what
is left of the queries is `no object`; sums of features are made of them.

Legend: N pictures, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fednc.tasks.dense.dataset import DenseData
from fednc.tasks.dense.maps import INSTANCE, LABEL, PART
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.targets import targets_of

WANTED = (LABEL, INSTANCE, PART)
_COUNTED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticData(DenseData):
    """Pictures with `WANTED` maps. A batch is (normalised pictures, labels, instances, parts).

    Attributes:
        layout: which column stands for what.
    """

    wanted: tuple[str, ...] = WANTED
    layout: Columns

    @cached_property
    def member_NK(self) -> Tensor:
        """int64 [N, K], on the CPU: how many queries of each picture each column should have."""
        maps = [self.maps[kind].cpu() for kind in WANTED]
        found = [
            targets_of([each[row] for each in maps], self.layout).members(self.layout)
            for row in torch.arange(self.examples).split(_COUNTED_AT_ONCE)
        ]
        return torch.cat(found) if found else torch.zeros(0, self.layout.space, dtype=torch.int64)

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: queries that sums of features are made of."""
        return self.member_NK.sum(dim=0)

    @property
    def having_K(self) -> Tensor:
        """int64 [K]: pictures with at least one of them."""
        return (self.member_NK > 0).sum(dim=0)

    @property
    def counts(self) -> dict[str, Tensor]:
        """Objects, stuff and parts, and pictures that have them."""
        return {"segments and parts": self.count_K, "pictures": self.having_K}

    @cached_property
    def with_parts(self) -> int:
        """Pictures with a labelled part."""
        first = len(self.layout.classes)
        return int((self.member_NK[:, first : self.layout.no_object] > 0).any(dim=1).sum())
