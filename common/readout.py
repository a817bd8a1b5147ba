"""How a trained model classifies: by its trained head, the vertices, the class memory, or both blended.

Called at evaluation and prediction. Must not know how the memory came about.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fednc.common.frame import unit
from fednc.common.guide import Guide
from fednc.common.heads import FrameHead, Head, logits


def readout_logits(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    """Scores [B, K] whose argmax is the prediction; -inf for vertices reserved beyond today's `classes`.

    `guide.method.readout` chooses what a class is compared by, with h = unit(feat):

    * `head`, `vertex`: the head as trained, that is s h . m_c with the vertex m_c for a frame; no class prior;
    * `memory`: the nearest class mean, s (h . v_c - |v_c|^2 / 2) = -s/2 |h - v_c|^2 + const, and -inf for a class
      never seen. The square matters: without it a class whose features are concentrated (long v_c) wins too often.
      While nothing is seen, the head as trained.
    * `blend`: s h . (m_c + unit(v_c)) / 2, the mean of the cosines to vertex and memory. A class never seen has
      m_c: the vertex stands in for the memory it lacks, so both kinds are means of two cosines. Normalising the
      sum instead would favour the classes on which vertex and memory disagree.

    The scale s of the head changes no prediction; it makes softmax and log-loss mean what they meant in training.
    """
    readout = guide.method.readout
    if readout in ("head", "vertex"):
        score_BK = logits(head, feat_BD, guide)
    elif readout == "memory":
        score_BK = _by_memory(feat_BD, head, guide, classes)
    else:
        score_BK = _scale(head, guide) * (unit(feat_BD) @ _blended(guide).T)
    reserved_K = torch.arange(score_BK.shape[1], device=score_BK.device) >= classes
    return score_BK.masked_fill(reserved_K, -torch.inf)


def _by_memory(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    half_square_K = guide.mean_KD.square().sum(dim=1) / 2
    score_BK = _scale(head, guide) * (unit(feat_BD) @ guide.mean_KD.T - half_square_K)
    score_BK = score_BK.masked_fill(~guide.seen_K, -torch.inf)
    return torch.where(guide.seen_K[:classes].any(), score_BK, logits(head, feat_BD, guide))


def _blended(guide: Guide) -> Tensor:
    memory_KD = torch.where(guide.seen_K.unsqueeze(1), unit(guide.mean_KD), guide.etf_KD)
    return (guide.etf_KD + memory_KD) / 2


def _scale(head: Head, guide: Guide) -> Tensor | float:
    return head.scale if isinstance(head, FrameHead) else guide.method.scale
