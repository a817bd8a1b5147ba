"""The metric in which a feature's distance to a class is measured: the inverse of the covariance within classes.

Called by the class memory when a round's sums are there. Must not know where they come from.

Legend: D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 2.0**-20  # variance below which there is no telling from rounding: features are multiples of 2^-15


def inverse_covariance(scatter_DD: Tensor, freedom: int) -> Tensor:
    """float32 inverse [D, D] of a covariance, shrunk towards a multiple of the identity as few examples ask for.

    (1 - r) S + r (tr S / D) I with the r of the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, IEEE
    Trans. Signal Processing 58, 2010, eq. 23): nothing to choose, next to 0 with many examples, 1 with none. All
    features of a class in one place, or a matrix that no features have, give a finite inverse too.

    Args:
        scatter_DD: S, float64 covariance around class means.
        freedom: degrees of freedom: examples less classes.
    """
    dim, mean = len(scatter_DD), scatter_DD.trace().clamp(min=0) / len(scatter_DD)
    value_D, vector_DD = torch.linalg.eigh((scatter_DD + scatter_DD.T) / 2)
    value_D = value_D.clamp(min=0)
    square, squared_sum = value_D.square().sum(), value_D.sum().square()
    wanted = (1 - 2 / dim) * square + squared_sum
    share = (wanted / ((max(0, freedom) + 1 - 2 / dim) * (square - squared_sum / dim))).nan_to_num(1.0).clamp(0, 1)
    shrunk_D = torch.lerp(value_D, mean.expand(dim), share) + FLOOR
    inverse_DD: Tensor = (vector_DD / shrunk_D) @ vector_DD.T
    return inverse_DD.float()
