"""The pictures of one client with their objects and parts.

Built by the task from what a reader gives. Members of a class are objects, stuff and parts of pictures, and what
is left of the queries is `no object`; sums of features are made of them.

Legend: N pictures, K columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fednc.tasks.dense.dataset import DenseData
from fednc.tasks.dense.maps import INSTANCE, LABEL, PART, VOID
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.targets import parts_labelled, targets_of

WANTED = (LABEL, INSTANCE, PART)
_COUNTED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class PanopticData(DenseData):
    """Pictures with `WANTED` maps. A batch is (normalised pictures, labels, instances, parts).

    Pictures without a single labelled part know nothing of parts, whatever their part maps say elsewhere: their
    batches have unknown parts, so that nothing is learnt of keys that this client does not send.

    Attributes:
        layout: which column stands for what.
    """

    wanted: tuple[str, ...] = WANTED
    layout: Columns

    @cached_property
    def member_NK(self) -> Tensor:
        """int64 [N, K], on the CPU: how many queries of each picture each column should have."""
        found = [targets_of(maps, self.layout).members(self.layout) for maps in self._some_maps()]
        return torch.cat(found) if found else torch.zeros(0, self.layout.space, dtype=torch.int64)

    def _some_maps(self) -> Iterator[list[Tensor]]:
        for row_B in torch.arange(self.examples).split(_COUNTED_AT_ONCE):
            yield [self._map(kind, row_B.to(self.pixel_NCHW.device)).cpu() for kind in WANTED]

    def _map(self, kind: str, row_B: Tensor) -> Tensor:
        found = super()._map(kind, row_B)
        return found if kind != PART or self.with_parts else torch.full_like(found, VOID)

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
        maps = [self.maps[kind].cpu() for kind in WANTED]
        rows = torch.arange(self.examples).split(_COUNTED_AT_ONCE) if self.layout.parts else ()
        return sum(int(parts_labelled([each[row] for each in maps], self.layout).sum()) for row in rows)
