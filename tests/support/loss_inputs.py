"""Small inputs, shared by the tests of losses.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

import torch

from fednc.common.config.tables import MethodSection
from fednc.common.learning.frame import draw_frame, unit
from fednc.common.learning.heads import FrameHead, logits
from fednc.common.learning.losses import class_prior, cross_entropy, dot_regression, memory_anchor
from fednc.common.learning.round_context import Guide

K, D, B = 6, 9, 8
COUNT_K = torch.tensor([5, 0, 90, 3, 0, 2])
SEEN_K = torch.tensor([True, True, False, True, False, True])
LABEL_B = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ETF_KD = draw_frame(K, D, seed=0).etf_KD.double()
MEAN_KD = torch.where(SEEN_K[:, None], 0.8 * unit(normal(K, D, seed=5)), 0.0)


def guide_for(ramp: float = 1.0, **method) -> Guide:
    return Guide(
        method=MethodSection(**method),
        etf_KD=ETF_KD,
        mean_KD=MEAN_KD,
        seen_K=SEEN_K,
        count_K=COUNT_K,
        memory_ramp=ramp,
    )


def frame_loss(feat_BD: torch.Tensor, scale: float = 8.0, prior_K: torch.Tensor | None = None) -> torch.Tensor:
    return cross_entropy(logits(FrameHead(scale, False), feat_BD, guide_for()), LABEL_B, prior_K)


LOSSES_OF_FEATURES = {
    "dot": lambda f: dot_regression(f, LABEL_B, ETF_KD),
    "ce": frame_loss,
    "balanced-ce": lambda f: frame_loss(f, prior_K=class_prior(COUNT_K, 1.0).double()),
    "anchor": lambda f: memory_anchor(f, LABEL_B, MEAN_KD, SEEN_K),
}
