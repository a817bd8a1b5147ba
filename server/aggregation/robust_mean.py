"""Means that a minority of hostile clients cannot move far: clip norms to the median, or leave out the farthest.

Used by the strategy instead of the streaming mean if `rounds.robust` asks for it. Both need all updates of a round
at once. Updates from our own link stay on disk and are memory-mapped: that costs no memory, but disk space for all
updates of the round until it ends. Both treat each tensor separately, and need three contributors to it.

`clip` is norm clipping (Sun et al., arXiv 1911.07963). `trim` leaves out, for each tensor, the contributors that
are farthest from the coordinate-wise median. The trimmed mean of Yin et al. (arXiv 1803.01498) trims value by
value instead. With non-iid data, clients differ so much that it also discards honest extremes, and loses up to ten
points more under sign flips (docs/robust.md).

Legend: C contributors, N values of a tensor, B values of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Literal

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fednc.common.wire import arrays
from fednc.server.aggregation.exact_sum import Values
from fednc.server.aggregation.holdings import CLEAR_MAJORITY
from fednc.server.aggregation.mean import Fold

_VALUES_AT_ONCE = 1 << 21  # over all contributors


@dataclass(frozen=True)
class _Update:
    node: int
    record: ArrayRecord
    weight: int
    squares: Mapping[str, float]
    owned: Mapping[str, int] | None = None  # see Fold.add

    def weight_of(self, key: str, fold: Fold) -> int:
        """The weight with which this update counts for one tensor."""
        return self.owned[key] if self.owned is not None and key in fold.by_owner else self.weight


def _keys(updates: Sequence[_Update]) -> list[str]:
    """Floating-point tensors that at least one contributor trained."""
    return list(dict.fromkeys(key for update in updates for key in update.squares))


class RobustMean:
    """Collects the updates of one round and computes their robust mean."""

    def __init__(self, fold: Fold, kind: Literal["clip", "trim"], trim_share: float) -> None:
        """`fold.start` was called for this round."""
        self._fold, self._kind, self._trim_share = fold, kind, trim_share
        self._updates: list[_Update] = []

    def add(self, node: int, update: ArrayRecord, weight: int, owned: Mapping[str, int] | None = None) -> None:
        """Check an update and keep it. Raises ProtocolError, see Fold.add."""
        squares = self._fold.squares(self._fold.checked(self._fold.values(update, owned)))
        lacks = self._fold.by_owner - set(owned) if owned is not None else frozenset()
        squares = {key: square for key, square in squares.items() if key not in lacks}
        self._updates.append(_Update(node, update, weight, squares, owned))

    @property
    def updates(self) -> int:
        """How many updates were added."""
        return len(self._updates)

    def mean(self) -> ArrayRecord:
        """The robust mean, or the ordinary mean of fewer than three updates. Sets the fold's count and weight."""
        updates = sorted(self._updates, key=lambda update: update.node)  # the same bits in any order of arrival
        self._updates = []
        applies = len(updates) >= CLEAR_MAJORITY
        factors = self._factors(updates) if applies and self._kind == "clip" else [{} for _ in updates]
        for update, each in zip(updates, factors, strict=True):
            record = self._fold.scaled(update.record, each, update.owned) if each else update.record
            self._fold.add(record, update.weight, update.owned)
        mean = self._fold.mean()
        if applies and self._kind == "trim":
            self._trim(mean, updates)
        return mean

    def _factors(self, updates: list[_Update]) -> list[dict[str, float]]:
        """For each update: the tensors that are too large, and the factor to scale them by."""
        found = {key: [one.squares[key] for one in updates if key in one.squares] for key in _keys(updates)}
        usual = {key: median_high(each) for key, each in found.items() if len(each) >= CLEAR_MAJORITY}
        return [
            {
                key: math.sqrt(usual[key] / square)
                for key, square in update.squares.items()
                if square > usual.get(key, math.inf)
            }
            for update in updates
        ]

    def _trim(self, mean: ArrayRecord, updates: list[_Update]) -> None:
        """Overwrite the floating-point tensors of `mean` with means that leave out the farthest contributors."""
        values = [self._fold.values(update.record, update.owned) for update in updates]
        for key in _keys(updates):
            owners = [index for index, update in enumerate(updates) if key in update.squares]
            if len(owners) < CLEAR_MAJORITY:
                continue
            weight_C = np.array([updates[index].weight_of(key, self._fold) for index in owners], np.float64)
            dropped = min(max(1, math.floor(self._trim_share * len(owners))), (len(owners) - 1) // 2)
            target = arrays.to_tensor(mean[key])
            rows = [values[index][key] for index in owners]
            target.copy_(_shaped(mean_of_nearest(rows, weight_C, dropped), target))


def mean_of_nearest(rows: list[Values], weight_C: Values, dropped: int) -> Values:
    """float64 [N]: the weighted mean without the `dropped` rows farthest from the median."""
    rows = [row.reshape(-1) for row in rows]
    distance_C = np.zeros(len(rows))
    for _, piece_CB in _blocks(rows):
        distance_C += np.square(piece_CB - np.median(piece_CB, axis=0)).sum(axis=1)
    kept = np.sort(np.argsort(distance_C, kind="stable")[: len(rows) - dropped])
    share_C = weight_C[kept] / weight_C[kept].sum()
    found_N = np.empty(rows[0].size)
    for start, piece_CB in _blocks([rows[index] for index in kept]):
        found_N[start : start + piece_CB.shape[1]] = share_C @ piece_CB
    return found_N


def _blocks(rows: list[Values]) -> Iterator[tuple[int, Values]]:
    """All rows in blocks, float64 [C, B], small enough for memory, each with its position."""
    size = max(1, _VALUES_AT_ONCE // len(rows))
    for start in range(0, rows[0].size, size):
        yield start, np.stack([row[start : start + size] for row in rows]).astype(np.float64)


def _shaped(value_N: Values, like: Tensor) -> Tensor:
    return torch.from_numpy(value_N).reshape(like.shape).to(like.dtype)
