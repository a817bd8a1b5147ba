"""The weighted mean of updates, exact in any order, folded one update at a time.

Called by the strategy as replies arrive; each update is checked completely before anything of it is added. The
running sum is one float64 per parameter, whatever the number of clients.

Why any order gives the same bits: weights are integers, every product n*x is first rounded to a grid common to
the round, (t + q) - q with q = 1.5 * 2^e, and sums of grid points stay below 2^53 grid units, so every addition is
exact. The only other rounding is the one division at the end. With e = ceil(log2(bound * weight)) + 2 the grid is
2^(e-52), so the mean is off by at most 2^-50 of the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from fednc.common import arrays
from fednc.common.errors import ProtocolError

_BLOCK = 1 << 14  # float64 block and its float32 source stay in the first two cache levels
_HEADROOM = 2.0**16  # how much larger than the reference's largest value an update's may be

Values = NDArray[Any]


class TensorFold:
    """Running sum of n*x for one tensor."""

    def __init__(self, reference: Tensor, total_weight: int) -> None:
        largest = float(reference.abs().max()) if reference.numel() else 0.0
        self.bound = _HEADROOM * max(1.0, largest)
        self._q = 1.5 * 2.0 ** (math.ceil(math.log2(self.bound * max(1, total_weight))) + 2)
        self._sum: NDArray[np.float64] = np.zeros(reference.numel(), np.float64)
        self._scratch: NDArray[np.float64] = np.empty(min(_BLOCK, reference.numel()), np.float64)

    def check(self, value: Values) -> None:
        """Raises ProtocolError unless all values are finite and within the bound."""
        if not value.size:
            return
        largest = max(float(value.max()), -float(value.min()))
        if not largest <= self.bound:  # NaN compares false
            raise ProtocolError(f"holds {largest}, allowed are finite values up to {self.bound:g}")

    def add(self, value: Values, weight: int) -> None:
        """Add weight * value; `check` it first."""
        flat = value.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            piece = flat[start : start + _BLOCK]
            term = self._scratch[: piece.size]
            np.multiply(piece, float(weight), out=term, dtype=np.float64)
            term += self._q
            term -= self._q
            self._sum[start : start + _BLOCK] += term

    def mean(self, weight: int) -> NDArray[np.float64]:
        """The weighted mean."""
        mean: NDArray[np.float64] = self._sum / weight
        return mean


class Fold:
    """Weighted mean of whole updates with the names, shapes and dtypes of a reference state."""

    def __init__(self, reference: Mapping[str, Tensor], total_weight: int) -> None:
        """`total_weight` bounds the sum of all weights that may come."""
        self._reference = reference
        self._total_weight = total_weight
        self._folds = {k: TensorFold(v, total_weight) for k, v in reference.items() if _is_averaged(v)}
        self.weight = 0
        self.updates = 0

    def add(self, update: ArrayRecord, weight: int) -> None:
        """Fold one update in, whole or not at all.

        Raises:
            ProtocolError: other names, shapes or dtypes than the reference, values that are not finite or out
                of bounds, or a weight beyond what was announced.
        """
        if weight < 1 or self.weight + weight > self._total_weight:
            raise ProtocolError(f"declares {weight} examples, more than it announced or less than one")
        values = self._checked(update)
        for key, value in values.items():
            self._folds[key].add(value, weight)
        self.weight += weight
        self.updates += 1

    def _checked(self, update: ArrayRecord) -> dict[str, Values]:
        if set(update) != set(self._reference):
            odd = sorted(set(update) ^ set(self._reference))
            raise ProtocolError(f"tensor names differ from the model's, for instance {odd[:3]}")
        values = {}
        for key, reference in self._reference.items():
            try:
                value = _matching(update[key], reference)
                if key in self._folds:
                    self._folds[key].check(value)
                    values[key] = value
            except ProtocolError as e:
                raise ProtocolError(f"tensor {key!r}: {e}") from e
        return values

    def mean(self) -> dict[str, Tensor]:
        """The mean of all updates in the reference's dtypes; the reference itself where nothing is averaged."""
        return {k: self._cast(k, v) for k, v in self._reference.items()}

    def _cast(self, key: str, reference: Tensor) -> Tensor:
        if key not in self._folds:
            return reference.clone()
        mean = torch.from_numpy(self._folds[key].mean(self.weight)).reshape(reference.shape)
        return mean.to(reference.dtype) if reference.is_floating_point() else mean.round().to(reference.dtype)


def _is_averaged(value: Tensor) -> bool:
    return value.dtype is not torch.bool


def _matching(array: Array, reference: Tensor) -> Values:
    expected = str(reference.dtype).removeprefix("torch.")
    if array.dtype != expected or tuple(array.shape) != tuple(reference.shape):
        shape = list(reference.shape)
        raise ProtocolError(f"is {array.dtype}{list(array.shape)}, expected {expected}{shape}")
    if array.stype == arrays.RAW_BF16:
        return arrays.to_tensor(array).float().numpy()
    value = arrays.to_numpy(array)
    return value if value.flags.aligned else value.copy()
