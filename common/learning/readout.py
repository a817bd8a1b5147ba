"""How a trained model classifies: by its trained head, the vertices, the class memory, both blended, or a
discriminant that follows from the memory.

Called at evaluation and prediction. Must not know how the memory came about.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fednc.common.learning.frame import unit
from fednc.common.learning.heads import CosineHead, FrameHead, Head, logits
from fednc.common.learning.round_context import Guide


def readout_logits(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    """Scores [B, K] whose argmax is the prediction; -inf for vertices reserved beyond today's `classes`.

    `guide.method.readout` chooses what a class is compared by, with h = unit(feat):

    * `head`, `vertex`: the head as trained, that is s h . m_c with the vertex m_c for a frame; no class prior;
    * `memory`: the nearest class mean, s (h . v_c - |v_c|^2 / 2) = -s/2 |h - v_c|^2 + const, and -inf for a class
      never seen. The square matters: without it a class whose features are concentrated (long v_c) wins too often.
      While nothing is seen, the head as trained.
    * `discriminant`: the nearest class mean in the metric A of the memory, the inverse covariance of features
      around their means: h . A v_c - v_c . A v_c / 2 with h and v_c less the mean of all v_c, Fisher's linear
      discriminant. It is the log-likelihood of a class less that of the mean, so it has no scale, and its log-loss
      is none of training's; -inf for a class never seen. While nothing is seen, the head as trained; as `memory`
      while no class had two examples to tell how they vary.
    * `blend`: both, s ((1 - w) h . m_c + w (h . v_c - |v_c|^2 / 2)), w = 1 / (2 - k^2) with k the mean length of
      the memories: features of variance 1 - k^2 around their class means make the nearest mean 1 / (1 - k^2)
      times as sure, so w grows from 1/2 to 1 as classes collapse. A class never seen has v_c = k m_c: its vertex
      stands in for the memory it lacks. While nothing is seen, the vertices.

    The scale s of the head changes no prediction; it makes softmax and log-loss mean what they meant in training.
    """
    readout = guide.method.readout
    if readout in ("head", "vertex"):
        return as_trained(feat_BD, head, guide, classes)
    read = _by_memory if readout in ("memory", "discriminant") else _blended
    return _existing(read(feat_BD, head, guide, classes), classes)


def as_trained(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    """Scores [B, K] of the head as trained."""
    return _existing(logits(head, feat_BD, guide), classes)


def _existing(score_BK: Tensor, classes: int) -> Tensor:
    reserved_K = torch.arange(score_BK.shape[1], device=score_BK.device) >= classes
    return score_BK.masked_fill(reserved_K, -torch.inf)


def memory_scores(unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
    """Scores [B, K] of unit features in the memory's space by the read-out `memory` or `discriminant`."""
    if guide.method.readout == "discriminant" and guide.metric_DD is not None:
        centre_D = guide.mean_KD[guide.seen_K].mean(dim=0)
        centred_KD = guide.mean_KD - centre_D
        score_BK = _nearest_mean(unit_BD - centre_D, centred_KD, centred_KD @ guide.metric_DD)
    else:
        score_BK = scale * _nearest_mean(unit_BD, guide.mean_KD, guide.mean_KD)
    return score_BK.masked_fill(~guide.seen_K, -torch.inf)


def _by_memory(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    score_BK = memory_scores(unit(feat_BD), guide, _scale(head, guide))
    return torch.where(guide.seen_K[:classes].any(), score_BK, logits(head, feat_BD, guide))


def _blended(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    length_K = guide.mean_KD.norm(dim=1)
    length = length_K[guide.seen_K].mean().nan_to_num(0.0)
    memory_KD = torch.where(guide.seen_K.unsqueeze(1), guide.mean_KD, length * guide.etf_KD)
    weight = 1 / (2 - length.square())
    by_vertex_BK, by_memory_BK = unit(feat_BD) @ guide.etf_KD.T, _nearest_mean(unit(feat_BD), memory_KD, memory_KD)
    score_BK = _scale(head, guide) * torch.lerp(by_vertex_BK, by_memory_BK, weight)
    return torch.where(guide.seen_K[:classes].any(), score_BK, logits(head, feat_BD, guide))


def _nearest_mean(feat_BD: Tensor, mean_KD: Tensor, axis_KD: Tensor) -> Tensor:
    """h . a - v . a / 2 with a = A v, [B, K]: (|h|^2 - |h - v|^2) / 2 in the metric A."""
    return feat_BD @ axis_KD.T - (mean_KD * axis_KD).sum(dim=1) / 2


def _scale(head: Head, guide: Guide) -> Tensor | float:
    return head.scale if isinstance(head, FrameHead | CosineHead) else guide.method.scale
