"""From masks and scores to one map each of classes, instances and parts.

Called by the task for metrics, prediction and pictures. Branches on no value, so that it can be part of a graph.

Legend: B batch, H height, W width, N = Q thing + S stuff + P part queries, K columns, R = Q + S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.tasks.dense.maps import NO_INSTANCE, VOID
from fednc.tasks.panoptic.columns import Columns

SEMANTIC, INSTANCE, PART = range(3)  # of the maps in one tensor
PRESENT = 0.5  # stuff with a lower score is not there


def merged(mask_BNHW: Tensor, share_BNK: Tensor, columns: Columns, score: float, kept: float) -> Tensor:
    """int64 [B, 3, H, W]: class, instance (NO_INSTANCE for stuff), part (0: none).

    Each pixel goes to the thing or stuff with the largest product of score and mask. Things with a score below
    `score` are no candidates, nor is stuff that is more likely absent. Segments of whose mask less than the share
    `kept` is left become void. Every pixel of a segment with parts has the part of its class with the largest
    product: where parts are labelled, the parts of a class cover it, so to leave one out could only be wrong.

    Args:
        mask_BNHW: logits.
        share_BNK: probability of each column for each query.
    """
    scenes = columns.part_rows.start
    share_BNHW, (found_BN, column_BN) = mask_BNHW.sigmoid(), _scores(share_BNK, columns)
    least_R = torch.tensor([score] * columns.queries + [PRESENT] * len(columns.stuff), device=found_BN.device)
    candidate_BR11 = (found_BN[:, :scenes] >= least_R)[:, :, None, None]
    share_BRHW = share_BNHW[:, :scenes]
    weight_BRHW = (found_BN[:, :scenes, None, None] * share_BRHW).masked_fill(~candidate_BR11, -1.0)
    owner_BHW = weight_BRHW.argmax(dim=1)
    inside_BRHW = (share_BRHW >= 0.5) & candidate_BR11
    query_R = torch.arange(scenes, device=owner_BHW.device)
    own_BRHW = inside_BRHW & (owner_BHW[:, None] == query_R[:, None, None])
    left_BR = own_BRHW.sum(dim=(2, 3)) >= kept * inside_BRHW.sum(dim=(2, 3))
    owned_BHW = (own_BRHW & left_BR[:, :, None, None]).any(dim=1)
    column_BHW = column_BN.gather(1, owner_BHW.flatten(1)).reshape(owner_BHW.shape)
    semantic_BHW = torch.where(owned_BHW, column_BHW, VOID)
    instance_BHW = torch.where(owned_BHW & (owner_BHW < columns.queries), owner_BHW, NO_INSTANCE)
    rows = columns.part_rows
    part_BHW = _parts(semantic_BHW, share_BNHW[:, rows], found_BN[:, rows], columns)
    return torch.stack([semantic_BHW, instance_BHW, part_BHW], dim=1)


def to_pictures(mask_BNhw: Tensor, size: Sequence[int]) -> Tensor:
    """Logits of masks at the size of the pictures, bilinear. Row i of a mask is row 2i of the picture, as in
    targets.
    """
    height, width = mask_BNhw.shape[2:]
    exact = (2 * height - 1, 2 * width - 1)
    found = F.interpolate(mask_BNhw, size=exact, mode="bilinear", align_corners=True)
    return F.pad(found, (0, size[1] - exact[1], 0, size[0] - exact[0]), mode="replicate")


def _scores(share_BNK: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
    """(the best share of each query among the columns that are an object, that column), each [B, N]."""
    is_object_K = torch.arange(share_BNK.shape[2], device=share_BNK.device) != columns.no_object
    best = share_BNK.masked_fill(~is_object_K, -1.0).max(dim=2)
    return best.values, best.indices


def _parts(semantic_BHW: Tensor, share_BPHW: Tensor, found_BP: Tensor, columns: Columns) -> Tensor:
    part_BHW = torch.zeros_like(semantic_BHW)
    for whole, values in columns.part_ids.items():
        rows = [row for row, (of, _) in enumerate(columns.parts) if of == whole]
        best_BHW = (share_BPHW[:, rows] * found_BP[:, rows, None, None]).argmax(dim=1)
        value_BHW = torch.tensor(values, device=part_BHW.device)[best_BHW]
        part_BHW = torch.where(semantic_BHW == whole, value_BHW, part_BHW)
    return part_BHW
