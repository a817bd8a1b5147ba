"""The weighted mean of updates, exact in any order, folded one update at a time.

Called by the strategy as replies arrive; each update is checked completely before anything of it is added. The
running sum is eight bytes per parameter, whatever the number of clients.

Why any order gives the same bits: every product n*x (n a whole number) is rounded by itself to a grid that is
common to the round, and sums of grid points are sums of whole numbers. Rounding costs one addition: for
q = 1.5 * 2^e and |t| <= 2^(e-1), the float64 t + q lies in [2^e, 2^(e+1)], where neighbours differ by one step
2^(e-52) of the grid and their bits, read as a whole number, by one. These bits are what is summed, modulo 2^64;
those of q are taken off at the end, and the only other rounding is the one division.

How far off: a term by half a step at most. With bound B on |x|, weights of W in all and w at most, 2^e is 2Bw or,
so that sums stay below 2^62 steps, 2^-10 BW, rounded up to a power of two. So the mean of K updates is off by at
most B (2^-51 w / (W/K) + 2^-62 K), and B is 2^16 times the largest value of the reference: a step is finer than
float32's for all values but those far below the tensor's largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fednc.common import arrays, codec
from fednc.common.errors import ProtocolError
from fednc.server.threads import spread

_BLOCK = 1 << 17  # values; longer blocks fall out of the caches, shorter ones make threads wait for each other
_SPAN = 1 << 20  # values that one thread takes at once
_HEADROOM = 2.0**16  # how much larger than the reference's largest value an update's may be

Values = NDArray[Any]


class TensorFold:
    """Running sum of n*x for one tensor."""

    def __init__(self, size: int) -> None:
        self._sum = np.empty(size, np.int64)

    def start(self, largest: float, total_weight: int, largest_weight: int) -> None:
        """Begin at zero, for values up to `_HEADROOM` times `largest`."""
        self.bound = _HEADROOM * max(1.0, largest)
        exponent = math.ceil(math.log2(self.bound * max(2 * largest_weight, total_weight / 2**10)))
        self._q = np.float64(1.5 * 2.0**exponent)
        self._step = 2.0 ** (exponent - 52)
        self.updates = 0

    def check(self, values: Values) -> None:
        """Raises ProtocolError unless all values are finite and within the bound."""
        largest = _largest(values)
        if not largest <= self.bound:  # NaN compares false
            raise ProtocolError(f"holds {largest}, allowed are finite values up to {self.bound:g}")

    def add(self, values: Values, place: int, weight: int) -> None:
        """Add weight * values from `place` on; `check` them first, and count the update when it is there whole."""
        scratch = np.empty(min(_BLOCK, values.size), np.float64)
        for start, piece in _cut(values, _BLOCK):
            term = scratch[: piece.size]
            np.copyto(term, piece)
            np.multiply(term, float(weight), out=term)
            np.add(term, self._q, out=term)
            total = self._sum[place + start : place + start + piece.size]
            np.add(total if self.updates else 0, term.view(np.int64), out=total)

    def mean_into(self, target: Values, place: int, weight: int) -> None:
        """Write the weighted mean from `place` on into `target`, in its dtype."""
        bias = np.uint64(self.updates * int(self._q.view(np.int64)) % 2**64).view(np.int64)
        whole, scratch = target.dtype.kind != "f", np.empty(min(_BLOCK, target.size), np.float64)
        for start, out in _cut(target, _BLOCK):
            steps = self._sum[place + start : place + start + out.size] - bias
            mean = np.divide(steps, weight / self._step, out=scratch[: out.size])
            np.copyto(out, np.rint(mean) if whole else mean, casting="unsafe")


def _largest(values: Values) -> float:
    """Of the absolute values; NaN where one of them is."""
    pieces = (piece for _, piece in _cut(values, _BLOCK))
    return float(np.max([0.0, *(max(float(piece.max()), -float(piece.min())) for piece in pieces)]))


def _square_distance(values: Values, origin: Values) -> float:
    scratch, squares = np.empty(min(_BLOCK, values.size)), []
    for start, piece in _cut(values, _BLOCK):
        change = scratch[: piece.size]
        np.subtract(piece, origin[start : start + piece.size], out=change, dtype=np.float64)
        with np.errstate(over="ignore"):  # infinite is too far
            squares.append(float(np.square(change, out=change).sum()))
    return math.fsum(squares)


def _cut(values: Values, size: int) -> Iterator[tuple[int, Values]]:
    """Flat pieces of at most `size` values, each with its place."""
    flat = values.reshape(-1)
    return ((start, flat[start : start + size]) for start in range(0, flat.size, size))


@dataclass(frozen=True)
class NormBound:
    """How far an update may be from the global model: L2 norm over all floating-point tensors of `keys`."""

    most: float
    keys: Collection[str]  # of tensors that come as they are, not as changes

    @classmethod
    def of(cls, most: float, keys: Collection[str]) -> NormBound | None:
        """The bound that a run file asks for; 0: none."""
        return cls(most, keys) if most else None


class Fold:
    """Weighted mean of whole updates with the names, shapes and dtypes of a reference state."""

    def __init__(self, reference: Mapping[str, Tensor]) -> None:
        """Takes memory for states like `reference`; `start` comes next."""
        self._folds = {k: TensorFold(v.numel()) for k, v in reference.items() if _is_averaged(v)}

    def start(
        self, reference: Mapping[str, Tensor], weights: Collection[int], bound: NormBound | None = None
    ) -> None:
        """Begin at zero; `weights` are all that may come, `reference` is another state like the first one."""
        self._reference, self._bound = reference, bound
        within = {key: reference[key] for key in bound.keys if key in self._folds} if bound else {}
        self._from = {key: _numpy(value).reshape(-1) for key, value in within.items() if value.is_floating_point()}
        self._total_weight, self._largest_weight = sum(weights), max(weights, default=1)
        for key, fold in self._folds.items():
            largest = _largest(_numpy(reference[key]))
            fold.start(largest, self._total_weight, self._largest_weight)
        self.weight = 0
        self.updates = 0

    def add(self, update: ArrayRecord, weight: int) -> None:
        """Fold one update in, whole or not at all.

        Raises:
            ProtocolError: other names, shapes or dtypes than the reference, values that are not finite or out
                of bounds, a change of a larger norm than allowed, or a weight beyond what was announced.
        """
        if not 1 <= weight <= self._largest_weight or self.weight + weight > self._total_weight:
            raise ProtocolError(f"declares {weight} examples, more than it announced or less than one")
        self.add_values(self.checked(update), weight)

    def add_values(self, values: Mapping[str, Values], weight: int) -> None:
        """Fold in what `checked` gave."""
        self._spread(values, lambda key, span, place: self._folds[key].add(span, place, weight))
        for fold in self._folds.values():
            fold.updates += 1
        self.weight += weight
        self.updates += 1

    def checked(self, update: ArrayRecord) -> dict[str, Values]:
        """The values to fold in. Raises ProtocolError, see `add`."""
        if set(update) != set(self._reference):
            odd = sorted(set(update) ^ set(self._reference))
            raise ProtocolError(f"tensor names differ from the model's, for instance {odd[:3]}")
        values = {}
        for key, reference in self._reference.items():
            with _naming(key):
                values[key] = _matching(update[key], reference)
        averaged = {key: values[key] for key in self._folds}
        squares: list[float] = []
        self._spread(averaged, partial(self._check, squares))
        norm = math.sqrt(math.fsum(squares))  # exact, so that threads do not change it
        if self._bound and not norm <= self._bound.most:
            raise ProtocolError(f"changes the model by a norm of {norm:.6g}, allowed are {self._bound.most:g}")
        return averaged

    def _check(self, squares: list[float], key: str, span: Values, place: int) -> None:
        """Notes in `squares` what the span adds to the square of the norm."""
        with _naming(key):
            self._folds[key].check(span)
        if key in self._from:
            squares.append(_square_distance(span, self._from[key][place : place + span.size]))

    def _spread(self, values: Mapping[str, Values], act: Callable[[str, Values, int], None]) -> None:
        """`act(key, span of the values, its place)` for all values, on several threads where there are many."""
        spread(
            (
                (span.size, partial(act, key, span, place))
                for key, value in values.items()
                for place, span in _cut(value, _SPAN)
            ),
            enough=_SPAN,
        )

    def mean(self) -> ArrayRecord:
        """The mean of all updates in the reference's dtypes; the reference itself where nothing is averaged."""
        record, targets = arrays.blank_record(self._reference), {}
        for key, reference in self._reference.items():
            if key in self._folds:
                targets[key] = _numpy(arrays.to_tensor(record[key]))
            else:
                arrays.to_tensor(record[key]).copy_(reference)
        self._spread(targets, lambda key, span, place: self._folds[key].mean_into(span, place, self.weight))
        for key, mean in targets.items():
            if self._reference[key].dtype is torch.bfloat16:  # which numpy does not know
                arrays.to_tensor(record[key]).copy_(torch.from_numpy(mean))
        return record


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except ProtocolError as e:
        raise ProtocolError(f"tensor {key!r}: {e}") from e


def _is_averaged(value: Tensor) -> bool:
    return value.dtype is not torch.bool


def _numpy(value: Tensor) -> Values:
    return value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy()


def _matching(array: Array, reference: Tensor) -> Values:
    expected = str(reference.dtype).removeprefix("torch.")
    if array.dtype != expected or tuple(array.shape) != tuple(reference.shape):
        shape = list(reference.shape)
        raise ProtocolError(f"is {array.dtype}{list(array.shape)}, expected {expected}{shape}")
    if codec.is_encoded(array.stype):
        return (reference + codec.decode(array)).numpy()
    if array.stype == arrays.RAW_BF16:
        return _numpy(arrays.to_tensor(array))
    value = arrays.to_numpy(array)
    return value if value.flags.aligned else value.copy()
