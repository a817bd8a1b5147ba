"""Finds updates that are far larger than the others of their round, and removes or shrinks them.

Used by the strategy around the fold. Updates are added as they arrive, so nothing waits. The few largest are also
kept (on disk, if they came over our link) until all replies are in and the median norm is known. The fold's sums
are exact, so a removed update leaves no trace, and the result does not depend on the order of arrival.

An update that is too large is not clipped to the bound, because a liar would then always get the most that is
allowed. It is scaled to less than the median, and further down the larger it was, like redescending estimators
(Hampel et al., Robust Statistics, 1986). So a site whose update really is large still counts, and one that scales
its update up gains nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

from flwr.app import ArrayRecord

from fednc.server.aggregation.exact_sum import Values
from fednc.server.aggregation.holdings import CLEAR_MAJORITY
from fednc.server.aggregation.mean import Fold

_ABSURD = 10  # times the ratio: no honest training changes a model this much more than the others
_MOST_KEPT = 8

Owned = Mapping[str, int] | None  # see Fold.add


@dataclass(frozen=True)
class Outlier:
    """An update that was not used as it was sent."""

    node: int
    times: float  # the median norm
    is_left_out: bool  # else it was scaled down


class OutlierGuard:
    """Wraps the fold of one round."""

    def __init__(self, fold: Fold, *, ratio: float, asked: int) -> None:
        """`fold.start` was called for this round.

        Args:
            ratio: an update is an outlier above this many times the median norm; 0 turns the guard off.
            asked: how many nodes may contribute.
        """
        self._fold, self._ratio = fold, ratio
        self._is_on = ratio > 0 and asked >= CLEAR_MAJORITY
        self._most_kept = max(1, min(_MOST_KEPT, asked // 4))
        self._norms: dict[int, tuple[float, float]] = {}
        # Min-heaps, one for the model and one for the tensors sent as changes: their norms are not comparable.
        self._kept: list[list[tuple[float, int, ArrayRecord, int, Owned]]] = [
            [] for _ in range(1 + bool(fold.changes))
        ]

    def add(self, node: int, update: ArrayRecord, weight: int, owned: Owned = None) -> None:
        """Add an update, completely or not at all. Raises ProtocolError, see Fold.add."""
        grouped = self._fold.add(update, weight, owned)
        if self._is_on:
            self._norms[node] = self._norms_of(grouped)
            self._keep(node, update, weight, owned)

    def _norms_of(self, grouped: Sequence[Values]) -> tuple[float, float]:
        """(norm of the change of the model, norm of the tensors that are sent as changes)."""
        squares = self._fold.squares(grouped)
        extra = math.fsum(square for key, square in squares.items() if key in self._fold.changes)
        model = math.fsum(square for key, square in squares.items() if key not in self._fold.changes)
        return math.sqrt(model), math.sqrt(extra)

    def _keep(self, node: int, update: ArrayRecord, weight: int, owned: Owned) -> None:
        for heap, norm in zip(self._kept, self._norms[node], strict=False):
            heapq.heappush(heap, (norm, node, update, weight, owned))
            if len(heap) > self._most_kept:
                heapq.heappop(heap)

    def settle(self) -> list[Outlier]:
        """After the last update: remove or scale down those that are too large, and return them by node."""
        if len(self._norms) < CLEAR_MAJORITY:
            return []
        usual = [median_high(norms) for norms in zip(*self._norms.values(), strict=True)]
        found = []
        kept = {node: (update, weight, owned) for heap in self._kept for _, node, update, weight, owned in heap}
        for node, (update, weight, owned) in sorted(kept.items()):
            times = max(n / u if u else 0.0 for n, u in zip(self._norms[node], usual, strict=True))
            if times > self._ratio:
                found.append(Outlier(node, times, times > _ABSURD * self._ratio))
                self._fold.remove(update, weight, owned)
                if not found[-1].is_left_out:
                    factors = dict.fromkeys(update, self._ratio / times**2)
                    self._fold.add(self._fold.scaled(update, factors, owned), weight, owned)
        self._kept = []
        return found
