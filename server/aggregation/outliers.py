"""Updates that are far larger than the others of their round: found when the last one is there, then taken back.

Called by the strategy around the fold. Updates are folded as they arrive, so that nothing waits; only the few
largest are kept, on the disk where they came by our link, until the median norm of the round is known. The fold's
sums are exact, so taking one back leaves no trace, and the result is the same in any order of arrival.

What is too large is not cut to the bound, which is the most that a liar could get, but scaled to less than the
median, and the less the larger it was, as redescending estimators do (Hampel et al., Robust Statistics, 1986): a
site whose update really is large still counts, one that is scaled up gains nothing by it.
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

_ABSURD = 10  # times the ratio: nobody's training changes a model so much more than everybody else's
_MOST_KEPT = 8

Owned = Mapping[str, int] | None  # see Fold.add


@dataclass(frozen=True)
class Outlier:
    """An update that did not count as it was sent."""

    node: int
    times: float  # the median norm
    is_left_out: bool  # else it was scaled down to the median or less


class OutlierGuard:
    """Around the fold of one round."""

    def __init__(self, fold: Fold, *, ratio: float, asked: int) -> None:
        """The fold has been started.

        Args:
            ratio: how many times the median norm are too many; 0: any norm is taken.
            asked: nodes that may contribute.
        """
        self._fold, self._ratio = fold, ratio
        self._is_on = ratio > 0 and asked >= CLEAR_MAJORITY
        self._most_kept = max(1, min(_MOST_KEPT, asked // 4))
        self._norms: dict[int, tuple[float, float]] = {}
        # Heaps, the smallest first, one for each kind of change: their norms cannot be compared.
        self._kept: list[list[tuple[float, int, ArrayRecord, int, Owned]]] = [
            [] for _ in range(1 + bool(fold.changes))
        ]

    def add(self, node: int, update: ArrayRecord, weight: int, owned: Owned = None) -> None:
        """Fold an update in, whole or not at all. Raises ProtocolError, as the fold does."""
        grouped = self._fold.add(update, weight, owned)
        if self._is_on:
            self._norms[node] = self._norms_of(grouped)
            self._keep(node, update, weight, owned)

    def _norms_of(self, grouped: Sequence[Values]) -> tuple[float, float]:
        """Of the change of the model, and of the tensors that come as changes."""
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
        """All updates are there: take back those that are too large, by node."""
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
