"""The loss of a session: projected new examples and the projected class memory are both pulled to their classes.

Called by the task. Pure functions of tensors; must not know models or where the memory came from. The weights are
those of NC-FSCIL's increments (arXiv 2302.03004). There the target of class k is scaled by r_k = sqrt(gamma/n_k),
and 1/2 (r_k cos - r_k)^2 = gamma / n_k * 1/2 (cos - 1)^2, which is dot regression weighted by gamma / n_k.

Legend: N rows (examples and memories), M memories, B examples, C backbone width, D feature width, K label space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.learning.frame import unit
from fednc.common.learning.heads import Head, logits
from fednc.common.learning.round_context import Guide

MIX = 0.5  # weight of a feature in its mixture; fixed to the published value


def rehearsed(guide: Guide, base: int, copies: int, held_K: Tensor) -> tuple[Tensor, Tensor]:
    """(memories [M, C], labels [M]); with `method.spread`, features drawn around the memories.

    Args:
        guide: has the class memory.
        base: number of classes of the first stage; classes of sessions are repeated `copies` times.
        held_K: classes with examples in the batch. The examples are better than their mean, so the memory of these
            classes is left out, but features drawn around it are not.
    """
    vertex_K, spread = torch.arange(len(guide.seen_K), device=guide.seen_K.device), guide.method.spread
    label_M = vertex_K[guide.seen_K if spread else guide.seen_K & ~held_K]
    label_M = label_M.repeat_interleave(torch.where(label_M < base, 1, copies) * max(1, spread))
    mean_MC = guide.mean_KD[label_M]
    return (drawn_around(mean_MC, deviation(guide, base)) if spread else mean_MC), label_M


def deviation(guide: Guide, base: int) -> Tensor:
    """Standard deviation [] per coordinate of unit features around their class mean, over first-stage classes.

    E|h - v|^2 = 1 - |v|^2 for unit features h with mean v, so it follows from the memory. Classes with few
    examples are assumed to have the same deviation, because the mean of few examples is longer than that of many.
    """
    seen_K = guide.seen_K[:base]
    variance_K = (1 - guide.mean_KD[:base].square().sum(dim=1)).clamp(min=0)
    return (variance_K[seen_K].mean() / guide.mean_KD.shape[1]).sqrt().nan_to_num(0.0)


def drawn_around(mean_MC: Tensor, deviation: Tensor) -> Tensor:
    """A unit feature drawn around each mean; from torch's global generator on the CPU, the same on all devices."""
    noise_MC = torch.randn(mean_MC.shape).to(mean_MC)
    return unit(mean_MC + deviation * noise_MC)


def balancing_weights(label_N: Tensor) -> Tensor:
    """gamma / n_k per row, where n_k is the number of rows of its class and gamma = N / (classes present)."""
    _, place_N, count_P = torch.unique(label_N, return_inverse=True, return_counts=True)
    weight_N: Tensor = len(label_N) / len(count_P) / count_P[place_N]
    return weight_N


def pull(feat_ND: Tensor, label_N: Tensor, weight_N: Tensor, head: Head, guide: Guide) -> Tensor:
    """Weighted mean over the rows of dot regression to the vertex, or of the head's cross-entropy."""
    if guide.method.loss == "dot":
        gap_N = (unit(feat_ND) * guide.etf_KD[label_N]).sum(dim=1) - 1
        loss_N = guide.method.dot_weight * 0.5 * gap_N.square()
    else:
        loss_N = F.cross_entropy(logits(head, feat_ND, guide), label_N, reduction="none")
    return (weight_N * loss_N).mean()


def session_loss(
    feat_ND: Tensor, label_N: Tensor, head: Head, guide: Guide, *, balance: bool, mixup: float
) -> Tensor:
    """The loss of a step over projected rows; at random (torch's global generator) rows are mixed in halves."""
    weight_N = balancing_weights(label_N) if balance else torch.ones(len(label_N), device=label_N.device)
    if not mixup or torch.rand(()).item() >= mixup:
        return pull(feat_ND, label_N, weight_N, head, guide)
    other_N = torch.randperm(len(label_N)).to(label_N.device)
    mixed_ND = MIX * feat_ND + (1 - MIX) * feat_ND[other_N]
    mine = pull(mixed_ND, label_N, weight_N, head, guide)
    theirs = pull(mixed_ND, label_N[other_N], weight_N[other_N], head, guide)
    return MIX * mine + (1 - MIX) * theirs
