"""The losses of the tasks besides segmentation: of the pixels whose value is known, and zero without any.

Predictions [B, channels, H, W] as the model gives them, truth as batches hold it. Pure functions.

Legend: B batch, H height, W width, P known pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.tasks.dense.maps import known
from fednc.tasks.multitask.kinds import KINDS


def depth_loss(found_B1HW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean absolute error."""
    known_BHW = known("depth", truth_BHW)
    return _mean(found_B1HW[:, 0][known_BHW] - truth_BHW[known_BHW])


def normals_loss(found_B3HW: Tensor, truth_B3HW: Tensor) -> Tensor:
    """Mean over pixels of the L1 distance between the unit vectors."""
    known_BHW = known("normals", truth_B3HW)
    apart_BHW = (F.normalize(found_B3HW, dim=1) - F.normalize(truth_B3HW, dim=1)).abs().sum(dim=1)
    return _mean(apart_BHW[known_BHW])


def edges_loss(found_B1HW: Tensor, truth_BHW: Tensor, share: float) -> Tensor:
    """Mean of -(share y log p + (1 - share) (1 - y) log(1 - p)): edges are few, so they weigh `share`."""
    known_BHW = known("edges", truth_BHW)
    score_P, truth_P = found_B1HW[:, 0][known_BHW], truth_BHW[known_BHW]
    return _mean(_binary(score_P, truth_P, share, 1 - share))


def saliency_loss(found_B1HW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean binary cross-entropy; each of the two values weighs the share of the other one in the batch."""
    known_BHW = known("saliency", truth_BHW)
    score_P, truth_P = found_B1HW[:, 0][known_BHW], truth_BHW[known_BHW]
    negative = 1 - truth_P.float().sum() / max(1, len(truth_P))
    return _mean(_binary(score_P, truth_P, negative, 1 - negative))


def parts_loss(found_BKHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean cross-entropy."""
    known_BHW = known("part", truth_BHW)
    score_PK = found_BKHW.permute(0, 2, 3, 1)[known_BHW]
    return _mean(F.cross_entropy(score_PK, truth_BHW[known_BHW], reduction="none"))


def loss_of(task: str, edge_weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a task; `edge_weight` is the share of edges."""
    return partial(edges_loss, share=edge_weight) if task == "edges" else _LOSSES[task]


_LOSSES = {"depth": depth_loss, "normals": normals_loss, "saliency": saliency_loss, "parts": parts_loss}
assert {*_LOSSES, "edges", "segmentation"} == set(KINDS)


def _binary(score_P: Tensor, truth_P: Tensor, positive: float | Tensor, negative: float | Tensor) -> Tensor:
    weight_P = torch.where(truth_P > 0, positive, negative)
    return weight_P * F.binary_cross_entropy_with_logits(score_P, truth_P.to(score_P.dtype), reduction="none")


def _mean(term_P: Tensor) -> Tensor:
    """The mean of the terms' sizes; zero, with a gradient of zero, without any."""
    return term_P.abs().sum() / max(1, term_P.numel())
