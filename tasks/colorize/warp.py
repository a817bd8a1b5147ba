"""Bent copies of pictures, by thin plate splines: a training picture is bent to be its own reference.

Four control points stay in the corners, two on the diagonal move along it. So a model cannot copy colours from the
same place. Called by the data set. All numbers are drawn on the CPU from the generator of the epoch.

Legend: B batch, P control points, H height, W width; coordinates are x, y from 0 to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
_BETWEEN = (0.3, 0.7)  # where the two points on the diagonal lie


def draw_points(batch: int, shift: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(control points [B, P, 2], where each of them goes [B, P, 2]).

    Args:
        shift: how far the points on the diagonal go at most, as a share of the side.
    """
    low, high = _BETWEEN
    place_B2 = low + (high - low) * torch.rand(batch, 2, generator=generator)
    gap_B = (place_B2[:, 1] - place_B2[:, 0]).abs() < 0.05  # two equal points have no spline
    place_B2[gap_B] = torch.tensor([low, high])
    moved_B2 = place_B2 + shift * (2 * torch.rand(batch, 2, generator=generator) - 1)
    corners_B42 = _CORNERS.expand(batch, 4, 2)
    return (
        torch.cat([corners_B42, place_B2[:, :, None].expand(batch, 2, 2)], dim=1),
        torch.cat([corners_B42, moved_B2[:, :, None].expand(batch, 2, 2)], dim=1),
    )


def warped(picture_BCHW: Tensor, from_BP2: Tensor, to_BP2: Tensor) -> Tensor:
    """The pictures, with what is at `to_BP2` now at `from_BP2`; beyond the border, the border's colours."""
    height, width = picture_BCHW.shape[2:]
    y, x = torch.meshgrid(_middles(height), _middles(width), indexing="ij")
    pixel_N2 = torch.stack([x.flatten(), y.flatten()], dim=1).double()
    found_BN2 = spline(from_BP2.double(), to_BP2.double(), pixel_N2.expand(len(picture_BCHW), -1, 2))
    grid_BHW2 = (2 * found_BN2 - 1).reshape(len(picture_BCHW), height, width, 2)
    grid_BHW2 = grid_BHW2.to(picture_BCHW.device, picture_BCHW.dtype)
    return F.grid_sample(picture_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def spline(from_BP2: Tensor, to_BP2: Tensor, at_BN2: Tensor) -> Tensor:
    """[B, N, 2]: the smoothest map of the plane that takes each control point where it goes, at other points."""
    batch, points = from_BP2.shape[:2]
    flat_BP3 = torch.cat([torch.ones_like(from_BP2[..., :1]), from_BP2], dim=2)
    system = torch.zeros(batch, points + 3, points + 3, dtype=from_BP2.dtype)
    system[:, :points, :points] = _bending(from_BP2, from_BP2)
    system[:, :points, points:] = flat_BP3
    system[:, points:, :points] = flat_BP3.transpose(1, 2)
    wanted = torch.cat([to_BP2, to_BP2.new_zeros(batch, 3, 2)], dim=1)
    weight = torch.linalg.solve(system, wanted)
    flat_BN3 = torch.cat([torch.ones_like(at_BN2[..., :1]), at_BN2], dim=2)
    found: Tensor = _bending(at_BN2, from_BP2) @ weight[:, :points] + flat_BN3 @ weight[:, points:]
    return found


def _bending(one_BN2: Tensor, other_BP2: Tensor) -> Tensor:
    """r^2 log r of each pair, 0 at r = 0."""
    square_BNP = (one_BN2[:, :, None] - other_BP2[:, None]).square().sum(dim=3)
    return 0.5 * torch.xlogy(square_BNP, square_BNP)


def _middles(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count
