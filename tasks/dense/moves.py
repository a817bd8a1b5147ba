"""Random crops and flips of pictures in training; every map of a picture moves with it.

Called by the data set. All numbers are drawn on the CPU from the generator of the epoch.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.tasks.dense.maps import NORMALS


@dataclass(frozen=True)
class Moves:
    """Where each picture of a batch is cut, and whether it is mirrored left to right.

    Attributes:
        size: height and width of the result.
    """

    top_B: Tensor
    left_B: Tensor
    mirror_B: Tensor
    size: tuple[int, int]


def draw_moves(
    batch: int, given: tuple[int, int], size: tuple[int, int], generator: torch.Generator, *, flip: bool
) -> Moves:
    """Moves of `batch` pictures of size `given` to crops of size `size`."""
    top_B = torch.randint(0, given[0] - size[0] + 1, (batch,), generator=generator)
    left_B = torch.randint(0, given[1] - size[1] + 1, (batch,), generator=generator)
    mirror_B = torch.rand(batch, generator=generator) < 0.5 if flip else torch.zeros(batch, dtype=torch.bool)
    return Moves(top_B, left_B, mirror_B, size)


def moved(value: Tensor, moves: Moves, kind: str = "") -> Tensor:
    """The crops of `value`, [B, H, W] or [B, C, H, W]. In a mirrored map of normals, x points the other way."""
    device, (height, width) = value.device, moves.size
    step_W = torch.arange(width)
    column_BW = moves.left_B[:, None] + torch.where(moves.mirror_B[:, None], step_W.flip(0), step_W)
    row_BH = moves.top_B[:, None] + torch.arange(height)
    picture_B11 = torch.arange(len(value), device=device)[:, None, None]
    row_BH1, column_B1W = row_BH.to(device)[:, :, None], column_BW.to(device)[:, None, :]
    if value.dim() == 3:
        return value[picture_B11, row_BH1, column_B1W]
    found_BCHW = value.permute(0, 2, 3, 1)[picture_B11, row_BH1, column_B1W].permute(0, 3, 1, 2)
    if kind == NORMALS:
        sign_BC = torch.ones(len(value), 3)
        sign_BC[moves.mirror_B, 0] = -1
        found_BCHW = found_BCHW * sign_BC.to(device)[:, :, None, None]
    return found_BCHW
