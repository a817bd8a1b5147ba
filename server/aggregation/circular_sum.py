"""The mean of angles: the direction of the weighted mean of (cos, sin), exact in any order.

Two exact sums, of sines and of cosines, with the interface of one. Called by the fold; knows only numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fednc.server.aggregation.exact_sum import HEADROOM, ExactSum, Values

# A mean vector shorter than this has no direction: opposite angles cancel out. In float32 no two angles of up to a
# turn are closer to opposite than half of this.
_NO_DIRECTION = 1e-6


class CircularSum(ExactSum):
    """Running sums of n*sin(x) and of n*cos(x)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self._cosines = ExactSum(sizes)

    def start(self, largest: Sequence[float], total_weight: int, largest_weight: int) -> None:
        """See ExactSum; `largest` bounds the angles, not their sines."""
        ones = [1.0] * len(largest)
        super().start(ones, total_weight, largest_weight)
        self._cosines.start(ones, total_weight, largest_weight)
        self.bounds = [HEADROOM * max(1.0, each) for each in largest]

    def add(self, values: Values, place: int, weight: int, *, is_first: bool) -> None:
        """See ExactSum."""
        angle = values.astype(np.float64)
        super().add(np.sin(angle), place, weight, is_first=is_first)
        self._cosines.add(np.cos(angle), place, weight, is_first=is_first)

    def remove(self, values: Values, place: int, weight: int) -> None:
        """See ExactSum."""
        angle = values.astype(np.float64)
        super().remove(np.sin(angle), place, weight)
        self._cosines.remove(np.cos(angle), place, weight)

    def mean_into(self, target: Values, place: int, weight: int, updates: int) -> None:
        """The angles of the mean, from -pi to pi; NaN where the mean has no direction."""
        sine, cosine = np.empty(target.size), np.empty(target.size)
        super().mean_into(sine, place, weight, updates)
        self._cosines.mean_into(cosine, place, weight, updates)
        angle = np.where(np.hypot(sine, cosine) > _NO_DIRECTION, np.arctan2(sine, cosine), np.nan)
        np.copyto(target, angle.reshape(target.shape), casting="unsafe")


def nearest_turn(angle: Values, origin: Values) -> Values:
    """float64: `angle` plus the whole turns that bring it closest to `origin`; `origin` where `angle` is NaN."""
    origin = origin.astype(np.float64)
    turned = origin + np.remainder(angle.astype(np.float64) - origin + math.pi, 2 * math.pi) - math.pi
    return np.where(np.isnan(turned), origin, turned)
