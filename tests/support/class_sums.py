"""Small features with labels, and their class sums."""

from __future__ import annotations

import torch

from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.frame import unit

K, D = 5, 7


def examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features with labels 0 ... K-2; no client has the last class."""
    g = torch.Generator().manual_seed(seed)
    return unit(torch.randn(count, D, generator=g)), torch.randint(K - 1, (count,), generator=g)


def sums_of(feat_ND: torch.Tensor, label_N: torch.Tensor) -> ClassSums:
    return ClassSums.zeros(K, D, moment=True).add_batch(feat_ND, label_N)
