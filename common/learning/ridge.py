"""Ridge regression from features to classes, in closed form from additive sums.

Called by the class memory with a round's sums. Fed3R (Fani et al., ICML 2024) and AFL (arXiv 2405.16240) solve the
same kind of problem from the same kind of sums. Must not know where the sums come from.

Legend: K label space, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fednc.common.learning.covariance import FLOOR


def ridge_regression(sum_KD: Tensor, count_K: Tensor, moment_DD: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(weights [K, D], intercepts [K]), float32, that minimise |W h + b - y|^2 + L |W|^2 over all examples.

    y is the one-hot label and L is `strength` times the mean variance of the features per coordinate. The
    intercept is not regularised. A class without examples gets zeros. The solution is finite even if all features
    are equal, or the sums are not possible ones.

    Args:
        sum_KD: sums of the features of each class. count_K: their counts. moment_DD: sum of h h^T over all
        classes.
    """
    sum_KD, examples = sum_KD.double(), max(1, int(count_K.sum()))
    share_K, mean_D = count_K.double() / examples, sum_KD.sum(dim=0) / examples
    spread_DD = moment_DD.double() / examples - torch.outer(mean_D, mean_D)
    value_D, vector_DD = torch.linalg.eigh((spread_DD + spread_DD.T) / 2)
    value_D = value_D.clamp(min=0)
    solved_D = value_D + strength * value_D.mean() + FLOOR
    along_KD = sum_KD / examples - share_K[:, None] * mean_D  # covariance of each label with the features
    weight_KD = (along_KD @ vector_DD / solved_D) @ vector_DD.T
    intercept_K = share_K - weight_KD @ mean_D
    return weight_KD.float(), intercept_K.float()
