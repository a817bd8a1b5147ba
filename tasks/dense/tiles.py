"""Predicts large pictures in overlapping tiles, so that memory does not grow with the picture.

Called by dense tasks. Pure functions of tensors.

Legend: B batch, C channels of the input, K channels of the result, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles that cover `length`; neighbours overlap by `overlap` or more."""
    if tile >= length:
        return [0]
    step = max(1, tile - overlap)
    return [*range(0, length - tile, step), length - tile]


def in_tiles(compute: Callable[[Tensor], Tensor], pixel_BCHW: Tensor, tile: int, overlap: int) -> Tensor:
    """The result [B, K, H, W] of `compute`, which keeps height and width, over tiles of at most `tile` a side.

    Where tiles overlap, results are averaged; those near the border of a tile, which sees little around them,
    count for less. A picture that fits into one tile gives exactly what `compute` gives.
    """
    height, width = pixel_BCHW.shape[2:]
    if height <= tile and width <= tile:
        return compute(pixel_BCHW)
    total: Tensor | None = None
    weight_HW = pixel_BCHW.new_zeros(height, width)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            rows, columns = slice(top, min(height, top + tile)), slice(left, min(width, left + tile))
            found = compute(pixel_BCHW[:, :, rows, columns])
            ramp_HW = _ramp(found.shape[2], found)[:, None] * _ramp(found.shape[3], found)
            if total is None:
                total = found.new_zeros(*found.shape[:2], height, width)
            total[:, :, rows, columns] += found * ramp_HW
            weight_HW[rows, columns] += ramp_HW
    assert total is not None
    return total / weight_HW


def _ramp(length: int, like: Tensor) -> Tensor:
    """1 at both ends of a tile, growing by 1 per pixel towards the middle."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.minimum(place, place.flip(0)) + 1
