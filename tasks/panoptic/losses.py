"""The losses of masks: of the first masks and of each stage, and which column each query should have.

Called by the task, which adds the loss of classes (`objective`). Knows neither methods nor the frame.

Legend: B batch, C classes, N = Q thing + S stuff + P part queries, h and w height and width of the masks, M
    matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.matching import Matches
from fednc.tasks.panoptic.targets import Targets

CLASS, DICE, MASK, SEMANTIC = 2.0, 4.0, 1.0, 1.0  # weights, as published
_FOCUS, _BALANCE = 2.0, 0.25  # of the focal loss, as published
_SOFT = 2e-3
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What each query should find after matching.

    Attributes:
        mask_BNhw: bool.
        judged_BNhw: bool, pixels where that is known.
        found_BN: bool, queries that should find something.
        column_BN: int64, their columns; `no object` for the others.
        told_BN: bool, queries of which the column is known.
    """

    mask_BNhw: Tensor
    judged_BNhw: Tensor
    found_BN: Tensor
    column_BN: Tensor
    told_BN: Tensor


def aims_of(targets: Targets, matches: Matches, columns: Columns) -> Aims:
    """Things as they are matched; stuff and parts have queries of their own."""
    picture_M, query_M, object_M = matches
    batch, device = len(targets.class_BQ), targets.class_BQ.device
    size = (batch, columns.all_queries)
    mask_BNhw = torch.zeros(*size, *targets.label_Bhw.shape[1:], dtype=torch.bool, device=device)
    mask_BNhw[picture_M, query_M] = targets.thing_BQhw[picture_M, object_M]
    mask_BNhw[:, columns.queries :] = targets.own_BMhw
    column_BN = torch.full(size, columns.no_object, device=device)
    column_BN[picture_M, query_M] = targets.class_BQ[picture_M, object_M]
    has_BM = targets.has_own_BM
    column_BN[:, columns.queries :] = torch.where(has_BM, columns.own_M.to(device), columns.no_object)
    told_BN = targets.told_BN
    judged = targets.judged_Bhw[:, None].expand(-1, columns.part_rows.start, -1, -1)
    judged_parts = targets.judged_parts_Bhw[:, None].expand(-1, len(columns.parts), -1, -1)
    return Aims(
        mask_BNhw=mask_BNhw,
        judged_BNhw=torch.cat([judged, judged_parts], dim=1),
        found_BN=(column_BN != columns.no_object) & told_BN,
        column_BN=column_BN,
        told_BN=told_BN,
    )


def mask_loss(mask_BNhw: Tensor, aims: Aims) -> Tensor:
    """Cross-entropy of pixels and dice, a mean over the queries that should find something; 0 if none should."""
    guess_MX = mask_BNhw[aims.found_BN].flatten(1)
    truth_MX = aims.mask_BNhw[aims.found_BN].flatten(1).to(guess_MX.dtype)
    judged_MX = aims.judged_BNhw[aims.found_BN].flatten(1).to(guess_MX.dtype)
    pixels_M = judged_MX.sum(dim=1).clamp(min=1)
    by_pixel_M = (F.binary_cross_entropy_with_logits(guess_MX, truth_MX, reduction="none") * judged_MX).sum(dim=1)
    share_MX = guess_MX.sigmoid() * judged_MX
    square_M = share_MX.square().sum(dim=1) + truth_MX.sum(dim=1)
    dice_M = 1 - (2 * (share_MX * truth_MX).sum(dim=1) + _SOFT) / (square_M + _SOFT)
    return (MASK * by_pixel_M / pixels_M + DICE * dice_M).sum() / max(1, len(guess_MX))


def semantic_loss(semantic_BChw: Tensor, part_BPhw: Tensor, targets: Targets) -> Tensor:
    """Focal losses of the class of every pixel and of the first masks of the parts."""
    classes = semantic_BChw.shape[1]
    class_BChw = targets.label_Bhw[:, None] == torch.arange(classes, device=semantic_BChw.device)[:, None, None]
    judged_Bhw = targets.judged_Bhw
    of_parts = _focal(part_BPhw, targets.part_BPhw, targets.judged_parts_Bhw)
    return SEMANTIC * (_focal(semantic_BChw, class_BChw, judged_Bhw) + of_parts)


def _focal(guess_BChw: Tensor, truth_BChw: Tensor, judged_Bhw: Tensor) -> Tensor:
    """The focal loss (Lin et al. 2017), summed and divided by the number of positive pixels.

    Without any it is divided by the number of judged pixels: the sum alone would be larger than all other losses.
    """
    truth = truth_BChw.to(guess_BChw.dtype)
    entropy = F.binary_cross_entropy_with_logits(guess_BChw, truth, reduction="none")
    wrong = (guess_BChw.sigmoid() - truth).abs()
    balance = _BALANCE * truth + (1 - _BALANCE) * (1 - truth)
    each = balance * wrong.pow(_FOCUS) * entropy * judged_Bhw[:, None]
    positive, judged = (truth_BChw & judged_Bhw[:, None]).sum(), judged_Bhw.sum()
    return each.sum() / torch.where(positive > 0, positive, judged.clamp(min=1))


def rank_loss(mask_BNhw: Tensor, aims: Aims, columns: Columns) -> Tensor:
    """Things and stuff compete for each pixel: cross-entropy of the query that should have it."""
    scenes = columns.part_rows.start
    mask_BNhw, should_BNhw = mask_BNhw[:, :scenes], aims.mask_BNhw[:, :scenes]
    owner_Bhw = torch.where(should_BNhw.any(dim=1), should_BNhw.long().argmax(dim=1), _IGNORED)
    each_Bhw = F.cross_entropy(mask_BNhw, owner_Bhw, ignore_index=_IGNORED, reduction="none")
    return each_Bhw.sum() / (owner_Bhw != _IGNORED).sum().clamp(min=1)
