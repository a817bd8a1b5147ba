"""Sums of n*x with the same bits in any order, over one tensor or several small ones laid end to end.

Called by the fold (`mean.py`), which knows names and updates; this file knows only numbers.

Why any order gives the same bits: each product n*x (n an integer) is rounded on its own to a grid that is common
to the round, and sums of grid points are sums of integers. Rounding costs one addition: for q = 1.5 * 2^e and |t|
<= 2^(e-1), the float64 t + q lies in [2^e, 2^(e+1)], where neighbouring floats differ by one grid step, 2^(e-52),
and their bits, read as integers, differ by one. We sum these bits modulo 2^64 and subtract those of q at the end.
The only other rounding is one division.

The error: each term is off by at most half a step. Let B bound |x|, W be the sum of all weights and w the largest
weight. Then 2^e is the larger of 2Bw and 2^-10 BW (which keeps sums below 2^62 steps), rounded up to a power of
two. So the mean of K updates is off by at most B (2^-51 w / (W/K) + 2^-62 K). B is 2^16 times the largest value of
the reference, so a step is finer than float32's except for values far below the tensor's largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 17  # values; longer blocks do not fit in the caches, with shorter ones threads wait for each other
HEADROOM = 2.0**16  # an update's values may be this many times the largest value of the reference

Values = NDArray[Any]


class ExactSum:
    """Running sum of n*x over tensors laid end to end, each with its own grid."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes`: values of each tensor. Several tensors are never empty and have at most `BLOCK` in all."""
        self._sizes, self._starts = list(sizes), np.cumsum([0, *sizes[:-1]])
        self._sum = np.empty(sum(sizes), np.int64)
        self.bounds: list[float] = []  # largest allowed absolute value of each tensor; set by `start`
        self._q = self._step = np.empty(0)  # see the top of this file; set by `start`

    def start(self, largest: Sequence[float], total_weight: int, largest_weight: int) -> None:
        """Reset to zero, for values of each tensor up to `HEADROOM` times its `largest`."""
        self.bounds = [HEADROOM * max(1.0, each) for each in largest]
        room = max(2 * largest_weight, total_weight / 2**10)
        exponents = [math.ceil(math.log2(bound * room)) for bound in self.bounds]
        self._q = self._each([1.5 * 2.0**exponent for exponent in exponents])
        self._step = self._each([2.0 ** (exponent - 52) for exponent in exponents])

    def _each(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Repeat one value per tensor for all its elements; with a single tensor numpy broadcasts it."""
        return np.array(values) if len(values) == 1 else np.repeat(np.array(values), self._sizes)

    def largest(self, values: Values) -> list[float]:
        """Largest absolute value of each tensor; NaN if any is NaN. A single tensor may be passed span by span."""
        if len(self._sizes) == 1:
            return [largest(values)]
        high, low = (f.reduceat(values, self._starts).astype(np.float64) for f in (np.maximum, np.minimum))
        return np.maximum(high, -low).tolist()  # type: ignore[no-any-return]

    def squares(self, values: Values, origin: Values) -> list[float]:
        """Sum of squared differences of each tensor. A single tensor may be passed span by span."""
        scratch, found = np.empty(min(BLOCK, values.size)), list[float]()
        for start, piece in cut(values, BLOCK):
            change = scratch[: piece.size]
            np.subtract(piece, origin[start : start + piece.size], out=change, dtype=np.float64)
            with np.errstate(over="ignore"):  # infinity fails the later check
                if len(self._sizes) > 1:  # all in one piece
                    return np.add.reduceat(np.square(change, out=change), self._starts).tolist()  # type: ignore[no-any-return]
                found.append(float(np.square(change, out=change).sum()))
        return [math.fsum(found)]

    def add(self, values: Values, place: int, weight: int, *, is_first: bool) -> None:
        """Add weight * values from position `place` on. The caller has checked `largest` first."""
        scratch = np.empty(min(BLOCK, values.size), np.float64)
        for start, piece in cut(values, BLOCK):
            here = slice(place + start, place + start + piece.size)
            total = self._sum[here]
            np.add(0 if is_first else total, self._term(piece, weight, here, scratch), out=total)

    def remove(self, values: Values, place: int, weight: int) -> None:
        """Undo an `add` of the same values and weight. Sums are integers, so no trace remains."""
        scratch = np.empty(min(BLOCK, values.size), np.float64)
        for start, piece in cut(values, BLOCK):
            here = slice(place + start, place + start + piece.size)
            total = self._sum[here]
            np.subtract(total, self._term(piece, weight, here, scratch), out=total)

    def _term(self, piece: Values, weight: int, here: slice, scratch: Values) -> Values:
        """weight * values rounded to the grid, as integers, written into `scratch`."""
        term = scratch[: piece.size]
        np.copyto(term, piece)
        np.multiply(term, float(weight), out=term)
        np.add(term, _part(self._q, here), out=term)
        return term.view(np.int64)

    def mean_into(self, target: Values, place: int, weight: int, updates: int) -> None:
        """Write the mean of `updates` updates with total `weight`, from `place` on, into `target` in its dtype."""
        whole, scratch = target.dtype.kind != "f", np.empty(min(BLOCK, target.size), np.float64)
        bias = (self._q.view(np.uint64) * np.uint64(updates)).view(np.int64)
        for start, out in cut(target, BLOCK):
            here = slice(place + start, place + start + out.size)
            steps = self._sum[here] - _part(bias, here)
            mean = np.divide(steps, weight / _part(self._step, here), out=scratch[: out.size])
            np.copyto(out, np.rint(mean) if whole else mean, casting="unsafe")


def _part(each: Values, here: slice) -> Values:
    return each if each.size == 1 else each[here]


def largest(values: Values) -> float:
    """The largest absolute value; NaN if any value is NaN."""
    pieces = (piece for _, piece in cut(values, BLOCK))
    return float(np.max([0.0, *(max(float(piece.max()), -float(piece.min())) for piece in pieces)]))


def cut(values: Values, size: int) -> Iterator[tuple[int, Values]]:
    """Flat pieces of at most `size` values, each with its position."""
    flat = values.reshape(-1)
    return ((start, flat[start : start + size]) for start in range(0, flat.size, size))
