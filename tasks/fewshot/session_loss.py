"""What a session minimises: new examples and the class memory, projected and pulled to their classes alike.

Called by the task. Pure functions of tensors; must not know models or where the memory came from. The weights are
those of NC-FSCIL's increments (arXiv 2302.03004): there the target of class k is scaled by r_k = sqrt(gamma/n_k),
and 1/2 (r_k cos - r_k)^2 = gamma / n_k * 1/2 (cos - 1)^2, dot regression weighted by gamma / n_k.

Legend: N rows (examples and memories), M memories, B examples, C backbone width, D feature width, K label space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.learning.frame import unit
from fednc.common.learning.heads import Head, logits
from fednc.common.learning.round_context import Guide

MIX = 0.5  # of a feature in its mixture; the published value, fixed


def rehearsed(guide: Guide, base: int, copies: int, held_K: Tensor) -> tuple[Tensor, Tensor]:
    """(memories [M, C], labels [M]), or with `method.spread` features drawn around them.

    Args:
        guide: with the class memory.
        base: classes of the beginning; those of sessions stand `copies` times.
        held_K: classes of which there are examples. They say more than their mean, which is left out, but not more
            than what is drawn around it.
    """
    vertex_K, spread = torch.arange(len(guide.seen_K), device=guide.seen_K.device), guide.method.spread
    label_M = vertex_K[guide.seen_K if spread else guide.seen_K & ~held_K]
    label_M = label_M.repeat_interleave(torch.where(label_M < base, 1, copies) * max(1, spread))
    mean_MC = guide.mean_KD[label_M]
    return (drawn_around(mean_MC, deviation(guide, base)) if spread else mean_MC), label_M


def deviation(guide: Guide, base: int) -> Tensor:
    """Standard deviation [] per coordinate of unit features around their class mean, in classes of the beginning.

    E|h - v|^2 = 1 - |v|^2 for unit features h of mean v, so the memory says it by itself. Classes of few examples
    are taken to be as wide: the mean of few is longer than that of many.
    """
    seen_K = guide.seen_K[:base]
    variance_K = (1 - guide.mean_KD[:base].square().sum(dim=1)).clamp(min=0)
    return (variance_K[seen_K].mean() / guide.mean_KD.shape[1]).sqrt().nan_to_num(0.0)


def drawn_around(mean_MC: Tensor, deviation: Tensor) -> Tensor:
    """A unit feature around each mean; from torch's global generator on the CPU, the same for every device."""
    noise_MC = torch.randn(mean_MC.shape).to(mean_MC)
    return unit(mean_MC + deviation * noise_MC)


def balancing_weights(label_N: Tensor) -> Tensor:
    """gamma / n_k for each row, with n_k the rows of its class and gamma = N / (classes present); 1 on average."""
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
    """The loss of a step over projected rows, mixed by chance (torch's global generator) half and half."""
    weight_N = balancing_weights(label_N) if balance else torch.ones(len(label_N), device=label_N.device)
    if not mixup or torch.rand(()).item() >= mixup:
        return pull(feat_ND, label_N, weight_N, head, guide)
    other_N = torch.randperm(len(label_N)).to(label_N.device)
    mixed_ND = MIX * feat_ND + (1 - MIX) * feat_ND[other_N]
    mine = pull(mixed_ND, label_N, weight_N, head, guide)
    theirs = pull(mixed_ND, label_N[other_N], weight_N[other_N], head, guide)
    return MIX * mine + (1 - MIX) * theirs
