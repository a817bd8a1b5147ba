"""The networks: three levels, each of which describes neighbourhoods of the level before; the last is the cloud.

Built by the task. With `align`, every feature is invariant under rotations of the cloud. Normalisation is over the
features of one point, so it has no running statistics and clients with unlike clouds do not disturb each other.

Legend: B batch, N points, M centres, K neighbours, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.tasks.pointcloud.alignment import AlignedLinear, principal_axes
from fednc.tasks.pointcloud.options import PointCloudOptions
from fednc.tasks.pointcloud.sampling import farthest_points, nearest_points, rows

CENTRES_SEEN = 3  # centres that a point takes its features from
SMALLEST_SQUARE = 1e-6  # squared distance; a centre at the point itself has all the weight but this
SMALLEST_RADIUS = 1e-12  # of a neighbourhood whose points are all the same


@dataclass(frozen=True)
class Described:
    """Points with what is known of them.

    Attributes:
        point_BN3: where they are.
        feat_BNC: invariant features; None on the first level.
        axes_BN33: principal axes of their neighbourhoods; None on the first level, and without alignment.
    """

    point_BN3: Tensor
    feat_BNC: Tensor | None = None
    axes_BN33: Tensor | None = None


class Level(nn.Module):
    """Describes neighbourhoods: coordinates and features of the neighbours, two layers, and their maximum."""

    def __init__(self, given: int, width: int, *, align: bool, relative: bool) -> None:
        super().__init__()
        self.coordinates = AlignedLinear(width, align=align)
        self.features = nn.Linear(given, width, bias=False) if given else None
        self.relative = nn.Linear(9, width, bias=False) if relative and given else None
        self.bias = nn.Parameter(torch.zeros(width))
        self.rest = nn.Sequential(
            nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()
        )
        self.align = align

    def around(self, before: Described, centre_BM3: Tensor, index_BMK: Tensor) -> Described:
        """The centres, described by the points at `index_BMK`."""
        offset_BMK3 = rows(before.point_BN3, index_BMK) - centre_BM3[:, :, None]
        radius_BM11 = torch.linalg.vector_norm(offset_BMK3, dim=3).amax(dim=2)[:, :, None, None]
        offset_BMK3 = offset_BMK3 / radius_BM11.clamp_min(SMALLEST_RADIUS)
        axes_BM33 = principal_axes(offset_BMK3) if self.align else None
        response_BMKC = self.coordinates(offset_BMK3, axes_BM33) + self.bias
        if self.features is not None and before.feat_BNC is not None:
            response_BMKC = response_BMKC + self.features(rows(before.feat_BNC, index_BMK))
        if self.relative is not None and before.axes_BN33 is not None and axes_BM33 is not None:
            inside_BMK33 = rows(before.axes_BN33.flatten(2), index_BMK).unflatten(3, (3, 3))
            turn_BMK33 = axes_BM33.transpose(-1, -2)[:, :, None] @ inside_BMK33
            response_BMKC = response_BMKC + self.relative(turn_BMK33.flatten(3).to(response_BMKC.dtype))
        return Described(centre_BM3, self.rest(response_BMKC).amax(dim=2), axes_BM33)


class PointNetwork(nn.Module):
    """Global descriptor [B, W] of clouds [B, N, 3]; W is the last of `widths`."""

    width: int

    def __init__(self, options: PointCloudOptions) -> None:
        super().__init__()
        self.centres, self.neighbours = options.centres, options.neighbours
        self.width = options.widths[-1]
        given = (0, *options.widths)
        self.levels = nn.ModuleList(
            Level(before, width, align=options.align, relative=options.relative_frames)
            for before, width in zip(given, options.widths, strict=False)
        )

    def forward(self, point_BN3: Tensor) -> Tensor:
        """The largest value of each feature over the whole cloud."""
        whole_BW = self.described(point_BN3)[-1].feat_BNC
        assert whole_BW is not None
        return whole_BW[:, 0]

    def described(self, point_BN3: Tensor) -> list[Described]:
        """The centres of each level; the last has the whole cloud as its only one."""
        found, levels = Described(point_BN3), []
        for level, centres, neighbours in zip(self.levels, self.centres, self.neighbours, strict=False):
            assert isinstance(level, Level)
            centre_BM3 = rows(found.point_BN3, farthest_points(found.point_BN3, centres))
            found = level.around(found, centre_BM3, nearest_points(centre_BM3, found.point_BN3, neighbours))
            levels.append(found)
        last = self.levels[-1]
        assert isinstance(last, Level)
        batch, count, _ = found.point_BN3.shape
        all_B1N = torch.arange(count, device=point_BN3.device).expand(batch, 1, count)
        return [*levels, last.around(found, found.point_BN3.mean(dim=1, keepdim=True), all_B1N)]


class PointwiseNetwork(PointNetwork):
    """Features [B, N, W] of every point: those of the levels, each interpolated from its three nearest centres."""

    def __init__(self, options: PointCloudOptions) -> None:
        super().__init__(options)
        self.width = options.widths[-1]
        self.mix = nn.Sequential(
            nn.Linear(sum(options.widths), self.width),
            nn.LayerNorm(self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.LayerNorm(self.width),
            nn.ReLU(),
        )

    def forward(self, point_BN3: Tensor) -> Tensor:
        """Invariant too: the weights of the interpolation follow from distances."""
        seen = [interpolated(point_BN3, level) for level in self.described(point_BN3)]
        mixed_BNW: Tensor = self.mix(torch.cat(seen, dim=2))
        return mixed_BNW


def interpolated(point_BN3: Tensor, level: Described) -> Tensor:
    """[B, N, C]: the features of the nearest three centres of each point, weighted by inverse squared distance."""
    assert level.feat_BNC is not None
    index_BNK = nearest_points(point_BN3, level.point_BN3, min(CENTRES_SEEN, level.point_BN3.shape[1]))
    apart_BNK = (rows(level.point_BN3, index_BNK) - point_BN3[:, :, None]).square().sum(dim=3)
    weight_BNK = 1 / (apart_BNK + SMALLEST_SQUARE)
    weight_BNK = weight_BNK / weight_BNK.sum(dim=2, keepdim=True)
    return (weight_BNK[..., None] * rows(level.feat_BNC, index_BNK)).sum(dim=2)


def aligned_layers(model: nn.Module) -> dict[str, AlignedLinear]:
    """The layers of a model whose weights may be turned without changing it, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AlignedLinear) and m.align}
