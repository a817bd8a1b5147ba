"""The metric for distances between features and classes: the inverse of the covariance within classes.

Called by the class memory with a round's sums. Must not know where they come from.

Legend: D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 2.0**-20  # smaller variances cannot be told from rounding: features are multiples of 2^-15


def inverse_covariance(scatter_DD: Tensor, freedom: int) -> Tensor:
    """float32 inverse [D, D] of a covariance, shrunk towards a multiple of the identity if there are few examples.

    (1 - r) S + r (tr S / D) I with the r of the oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, IEEE
    Trans. Signal Processing 58, 2010, eq. 23). There is nothing to tune: r is close to 0 with many examples and 1
    with none. The inverse is finite even if all features of a class are equal, or the matrix is not a possible
    covariance.

    Args:
        scatter_DD: S, float64 covariance around class means.
        freedom: degrees of freedom: number of examples minus number of classes.
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
