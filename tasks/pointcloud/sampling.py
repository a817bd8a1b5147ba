"""Which points are centres, and which are their neighbours: by distances alone, so rotations change nothing.

Used by the network.

Legend: B batch, N points, M centres, K neighbours, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(point_BN3: Tensor, count: int) -> Tensor:
    """int64 [B, M]: farthest-point sampling, starting with the point farthest from the centroid.

    Each next centre is the point with the largest distance to all centres so far. The start does not depend on the
    order of the points, nor on rotations. Works in float64: with rounded distances, near ties would be broken
    differently after a rotation.
    """
    wide_BN3 = point_BN3.double()
    apart_BN = (wide_BN3 - wide_BN3.mean(dim=1, keepdim=True)).square().sum(dim=2)
    nearest_BN = torch.full_like(apart_BN, torch.inf)
    chosen: list[Tensor] = []
    for _ in range(count):
        next_B1 = apart_BN.argmax(dim=1, keepdim=True)
        chosen.append(next_B1)
        centre_B13 = wide_BN3.gather(1, next_B1[:, :, None].expand(-1, -1, 3))
        nearest_BN = torch.minimum(nearest_BN, (wide_BN3 - centre_B13).square().sum(dim=2))
        apart_BN = nearest_BN
    return torch.cat(chosen, dim=1)


@torch.no_grad()
def nearest_points(centre_BM3: Tensor, point_BN3: Tensor, count: int) -> Tensor:
    """int64 [B, M, K]: the points nearest to each centre, in no particular order."""
    # Not by |a|^2 - 2ab + |b|^2, which loses digits where points are close to each other.
    apart_BMN = torch.cdist(centre_BM3.double(), point_BN3.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return apart_BMN.topk(count, dim=2, largest=False, sorted=False).indices


def rows(value_BNC: Tensor, index_BX: Tensor) -> Tensor:
    """[B, ..., C]: the rows of each example at an index [B, ...]."""
    flat_BX = index_BX.flatten(1)
    found = value_BNC.gather(1, flat_BX[:, :, None].expand(-1, -1, value_BNC.shape[2]))
    return found.reshape(*index_BX.shape, value_BNC.shape[2])
