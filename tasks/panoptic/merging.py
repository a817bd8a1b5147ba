"""From masks and scores to one map each of classes, instances and parts.

Called by the task for metrics, prediction and pictures. Depends on nothing but the scores and masks of a picture.

Legend: B batch, H height, W width, N = Q thing + S stuff + P part queries, K columns, R queries that are candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.tasks.dense.maps import NO_INSTANCE, VOID
from fednc.tasks.panoptic.columns import Columns

SEMANTIC, INSTANCE, PART = range(3)  # of the maps in one tensor


def merged(mask_BNHW: Tensor, share_BNK: Tensor, columns: Columns, score: float, kept: float) -> Tensor:
    """int64 [B, 3, H, W]: class, instance (NO_INSTANCE for stuff), part (0: none, VOID: unknown).

    Each pixel goes to the thing or stuff with the largest product of score and mask. Things with a score below
    `score` are no candidates, nor is stuff that is more likely absent. Segments of whose mask less than the share
    `kept` is left become void. Inside a segment with parts, the part of its class with the largest product and a mask
    above one half; unknown where there is none.

    Args:
        mask_BNHW: logits.
        share_BNK: probability of each column for each query.
    """
    return torch.stack([_picture(*each, columns, score, kept) for each in zip(mask_BNHW, share_BNK, strict=True)])


def to_pictures(mask_BNhw: Tensor, size: Sequence[int]) -> Tensor:
    """Logits of masks at the size of the pictures, bilinear. Row i of a mask is row 2i of the picture, as in targets."""
    height, width = mask_BNhw.shape[2:]
    exact = (2 * height - 1, 2 * width - 1)
    found = F.interpolate(mask_BNhw, size=exact, mode="bilinear", align_corners=True)
    return F.pad(found, (0, size[1] - exact[1], 0, size[0] - exact[0]), mode="replicate")


def _picture(mask_NHW: Tensor, share_NK: Tensor, columns: Columns, score: float, kept: float) -> Tensor:
    share_NHW = mask_NHW.sigmoid()
    found_N, column_N = _scores(share_NK, columns)
    is_thing_N = torch.arange(len(found_N), device=found_N.device) < columns.queries
    candidate_R = torch.where(is_thing_N, found_N >= score, found_N > 0.5).nonzero().flatten()
    candidate_R = candidate_R[candidate_R < columns.part_rows.start]
    result = torch.full((3, *mask_NHW.shape[1:]), VOID, dtype=torch.int64, device=mask_NHW.device)
    result[INSTANCE], result[PART] = NO_INSTANCE, 0
    if not len(candidate_R):
        return result
    owner_HW = candidate_R[(found_N[candidate_R, None, None] * share_NHW[candidate_R]).argmax(dim=0)]
    for row in candidate_R.tolist():
        inside_HW = share_NHW[row] >= 0.5
        own_HW = (owner_HW == row) & inside_HW
        if not own_HW.any() or own_HW.sum() < kept * inside_HW.sum():
            continue
        result[SEMANTIC][own_HW] = column_N[row]
        if row < columns.queries:
            result[INSTANCE][own_HW] = row
    result[PART] = _parts(result[SEMANTIC], share_NHW[columns.part_rows], found_N[columns.part_rows], columns)
    return result


def _scores(share_NK: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """(the best share of each query among the columns that are an object, that column)."""
    found_NK = share_NK.clone()
    found_NK[:, columns.no_object] = -1.0
    best = found_NK.max(dim=1)
    return best.values, best.indices


def _parts(semantic_HW: Tensor, share_PHW: Tensor, found_P: Tensor, columns: Columns) -> Tensor:
    part_HW = torch.zeros_like(semantic_HW)
    for whole, values in columns.part_ids.items():
        rows = [row for row, (of, _) in enumerate(columns.parts) if of == whole]
        weight_RHW = share_PHW[rows] * found_P[rows, None, None] * (share_PHW[rows] > 0.5)
        best = weight_RHW.max(dim=0)
        value_HW = torch.tensor(values, device=part_HW.device)[best.indices]
        here_HW = semantic_HW == whole
        part_HW[here_HW] = torch.where(best.values > 0, value_HW, VOID)[here_HW]
    return part_HW
