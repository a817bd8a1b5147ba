"""Neural-collapse metrics: how close the features are to one point per class, at the corners of a simplex.

Called at evaluation by tasks, plots and benchmarks, in float64. Must not know models or methods.

Legend: N examples, D feature width, K label space, P classes that occur among the examples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednc.common.learning.frame import unit

METRICS = ("nc1", "nc2", "nc2_norm", "nc2_angle", "nc2_std", "nc3", "nc3_cos", "nc4")
RANK_TOLERANCE = 1e-9  # centred class means have rank P-1: a singular value below this share is rounding


def collapse(feat_ND: Tensor, label_N: Tensor, vertices_KD: Tensor, classes: int) -> dict[str, float]:
    """NC1 to NC4 (Papyan, Han, Donoho 2020) over the classes below `classes` that have examples; 0 is collapse.

    mu_c are the class means, mu is their plain mean (so class frequencies do not matter), A has the rows mu_c -
    mu, w_c are the class vectors, and E = (I - 11^T/P) / sqrt(P-1):

    * nc1: tr(S_W S_B^+) / P, the spread within classes relative to that between them;
    * nc2: |A A^T/|A A^T| - E|, means at equal angles; nc2_norm: std/mean of |mu_c - mu|; nc2_angle: mean over
      pairs of |cos + 1/(P-1)|; nc2_std: standard deviation of these cosines over pairs;
    * nc3: |W A^T/|W A^T| - E|, means along the class vectors; nc3_cos: mean of cos(mu_c - mu, w_c), 1 is collapse;
    * nc4: share of examples for which the largest w_c . h and the nearest mu_c belong to different classes.

    Args:
        feat_ND: features, on any device, in any float type.
        label_N: labels; examples with a label outside the current classes are left out.
        vertices_KD: class vectors w_c: the frame, or the rows of a trained head's weight.

    Returns:
        All of these metrics. NaN with fewer than two classes, if all class means are equal, or if a feature is not
        finite.
    """
    keep_N = (label_N >= 0) & (label_N < classes)
    present_P, index_N = torch.unique(label_N[keep_N], return_inverse=True)
    feat_ND = feat_ND[keep_N].detach().double()
    mean_PD = _class_means(feat_ND, index_N, len(present_P))
    centred_PD = mean_PD - mean_PD.mean(dim=0)
    vertices_PD = vertices_KD.detach().double()[present_P]
    if len(present_P) < 2 or not _spread(centred_PD, mean_PD):
        return dict.fromkeys(METRICS, math.nan)
    metrics = {
        "nc1": _within_over_between(feat_ND - mean_PD[index_N], centred_PD),
        "nc2": _distance_to_simplex(centred_PD @ centred_PD.T),
        **_means_geometry(centred_PD),
        "nc3": _distance_to_simplex(vertices_PD @ centred_PD.T),
        "nc3_cos": (unit(centred_PD) * unit(vertices_PD)).sum(dim=1).mean(),
        "nc4": _disagreement(feat_ND, mean_PD, vertices_PD),
    }
    return {name: value.item() for name, value in metrics.items()}


def alignment(mean_KD: Tensor, vertices_KD: Tensor) -> Tensor:
    """float64 [K, K]: cosine between class i's mean, relative to the centre of all means, and class vector j.

    If features have collapsed onto a frame, this is the frame's Gram matrix. The row of a class whose mean is zero
    is
    NaN: it has not been seen, and does not affect the centre.
    """
    mean_KD, seen_K = mean_KD.detach().double(), mean_KD.any(dim=1)
    centred_KD = mean_KD - mean_KD[seen_K].mean(dim=0)
    cosine_KK = unit(centred_KD) @ unit(vertices_KD.detach().double()).T
    return cosine_KK.masked_fill(~seen_K[:, None], math.nan)


def _class_means(feat_ND: Tensor, index_N: Tensor, present: int) -> Tensor:
    sum_PD = feat_ND.new_zeros(present, feat_ND.shape[1]).index_add_(0, index_N, feat_ND)
    return sum_PD / torch.bincount(index_N, minlength=present).unsqueeze(1)


def _spread(centred_PD: Tensor, mean_PD: Tensor) -> bool:
    """Whether the class means differ from each other; False for NaN too."""
    return bool(torch.linalg.norm(centred_PD) > RANK_TOLERANCE * torch.linalg.norm(mean_PD))


def _within_over_between(within_ND: Tensor, centred_PD: Tensor) -> Tensor:
    # S_B = A^T A / P has the pseudo-inverse P A^+ A^+T, so tr(S_W S_B^+) / P = mean_i |(h_i - mu_y) A^+|^2,
    # which needs no D x D matrix.
    inverse_DP: Tensor = torch.linalg.pinv(centred_PD, rtol=RANK_TOLERANCE)
    ratio = (within_ND @ inverse_DP).square().sum() / len(within_ND)
    return ratio


def _distance_to_simplex(product_PP: Tensor) -> Tensor:
    present = len(product_PP)
    simplex_PP = torch.eye(present, dtype=product_PP.dtype, device=product_PP.device) - 1 / present
    wanted_PP = simplex_PP / math.sqrt(present - 1)
    distance: Tensor = torch.linalg.norm(product_PP / torch.linalg.norm(product_PP) - wanted_PP)
    return distance


def _means_geometry(centred_PD: Tensor) -> dict[str, Tensor]:
    present = len(centred_PD)
    norm_P = torch.linalg.vector_norm(centred_PD, dim=1)
    cosine_PP = unit(centred_PD) @ unit(centred_PD).T
    pairs = ~torch.eye(present, dtype=torch.bool, device=centred_PD.device)
    return {
        "nc2_norm": norm_P.std(correction=0) / norm_P.mean(),
        "nc2_angle": (cosine_PP[pairs] + 1 / (present - 1)).abs().mean(),
        "nc2_std": cosine_PP[pairs].std(correction=0),
    }


def _disagreement(feat_ND: Tensor, mean_PD: Tensor, vertices_PD: Tensor) -> Tensor:
    by_vertex_N = (feat_ND @ vertices_PD.T).argmax(dim=1)
    nearest_N = torch.cdist(feat_ND, mean_PD).argmin(dim=1)
    return (by_vertex_N != nearest_N).double().mean()
