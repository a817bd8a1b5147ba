"""Totals of additive sums that clients send once: exact, so the same bits in any order of arrival.

Called by the exchange before round 1, for small tensors. Unlike `exact_sum.py` it needs no bound on the values in
advance: every float64 is a whole number of steps of 2^-1074, and Python's whole numbers have no limit. Knows no
task and no reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEP_BITS = 1074  # the least positive float64 is 2^-1074
_MANTISSA_BITS = 53


class TotalSums:
    """Running totals of tensors by name, each float64 or int64."""

    def __init__(self, zeros: Mapping[str, Tensor]) -> None:
        """`zeros` has the name, shape and dtype of each total."""
        self._zeros = dict(zeros)
        self._totals: dict[str, NDArray[Any]] = {
            name: np.zeros(zero.numel(), dtype=object) for name, zero in self._zeros.items()
        }

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add finite values with the form of the zeros."""
        for name, total in self._totals.items():
            total += _whole(sums[name].reshape(-1).numpy())

    def value(self) -> dict[str, Tensor]:
        """The totals so far; of float64 the nearest to the true sum."""
        return {name: self._rounded(name, zero) for name, zero in self._zeros.items()}

    def _rounded(self, name: str, zero: Tensor) -> Tensor:
        scale = 1 << _STEP_BITS if zero.is_floating_point() else 1
        values = [each / scale if scale > 1 else each for each in self._totals[name]]  # int / int rounds once
        return torch.tensor(values, dtype=zero.dtype).reshape(zero.shape)


def _whole(values: NDArray[Any]) -> NDArray[Any]:
    """int64 values as Python's whole numbers; float64 values as whole numbers of steps of 2^-1074."""
    if values.dtype.kind != "f":
        return values.astype(object)
    fraction, exponent = np.frexp(values)
    mantissa = np.ldexp(fraction, _MANTISSA_BITS).astype(np.int64)
    shift = (exponent - _MANTISSA_BITS + _STEP_BITS).tolist()
    # Of a subnormal value the last bits of the mantissa are zero, and the shift is to the right.
    pairs = zip(mantissa.tolist(), shift, strict=True)
    whole = np.empty(len(shift), dtype=object)
    whole[:] = [each << by if by >= 0 else each >> -by for each, by in pairs]
    return whole
