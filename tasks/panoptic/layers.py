"""Layers from pictures to features: the backbone, the scene decoder and the flow-aligned part decoder.

Built by the network. After Panoptic-PartFormer (Li et al., ECCV 2022), with GroupNorm everywhere and a plain
convolution instead of the deformable one. Sizes need not divide by anything.

Legend: B batch, D width of the decoders, H height, W width, h and w half of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.tasks.dense.models import enlarged

GROUPS = 8  # divides every channel count


def conv(given: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU."""
    layer = nn.Conv2d(given, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.GroupNorm(GROUPS, out), nn.ReLU())


class SmallBackbone(nn.Module):
    """A small backbone: feature maps at a half, a quarter, ... of the picture's size, finest first."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(conv(given, out, stride=2), conv(out, out))
            for given, out in zip([channels, *widths], widths, strict=False)
        )

    def forward(self, pixel_BCHW: Tensor) -> list[Tensor]:
        """One map for each level."""
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(maps[-1] if maps else pixel_BCHW))
        return maps


class SceneDecoder(nn.Module):
    """Sums all levels at the finest size; the coarsest one knows where it is (sine encoding)."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv(given, width) for given in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, D, h, w]."""
        found = [layer(level) for layer, level in zip(self.lateral, maps, strict=True)]
        found[-1] = found[-1] + sine_encoding(found[-1])
        return torch.stack([enlarged(each, found[0].shape[2:]) for each in found]).sum(dim=0)


class AlignedDecoder(nn.Module):
    """From the coarsest level to the finest, each map moved along a learnt flow before it is added to the next."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv(given, width, kernel=1) for given in widths)
        self.flow = nn.ModuleList(Flow(width) for _ in widths[1:])
        self.out = conv(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, D, h, w]."""
        found = self.lateral[-1](maps[-1])
        levels = [found]
        for level in range(len(maps) - 2, -1, -1):
            low = self.lateral[level](maps[level])
            found = low + self.flow[level](low, found)
            levels.append(found)
        joined: Tensor = self.out(torch.stack([enlarged(each, maps[0].shape[2:]) for each in levels]).sum(dim=0))
        return joined


class Flow(nn.Module):
    """Enlarges a map while moving it by a flow that is predicted from both maps, in pixels of the larger one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(width, width // 2, 1, bias=False)
        self.high = nn.Conv2d(width, width // 2, 1, bias=False)
        self.flow = nn.Conv2d(width // 2 * 2, 2, 3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)  # starts as plain enlarging

    def forward(self, low_BDHW: Tensor, high_BDhw: Tensor) -> Tensor:
        """[B, D, H, W] from a map of that size and a coarser one."""
        height, width = low_BDHW.shape[2:]
        coarse = enlarged(self.high(high_BDhw), (height, width))
        flow_B2HW = self.flow(torch.cat([self.low(low_BDHW), coarse], dim=1))
        scale = flow_B2HW.new_tensor([width, height])
        grid_BHW2 = base_grid(height, width, low_BDHW) + 2 * flow_B2HW.permute(0, 2, 3, 1) / scale
        return F.grid_sample(high_BDhw, grid_BHW2, padding_mode="border", align_corners=False)


def base_grid(height: int, width: int, like: Tensor) -> Tensor:
    """[1, H, W, 2]: the centre of every pixel, from -1 to 1, right and down."""
    down = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height) - 1
    right = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(right, down, indexing="xy"), dim=-1)[None]


def sine_encoding(like_BDHW: Tensor) -> Tensor:
    """[1, D, H, W]: sines and cosines of the place, of growing wavelength; half the channels for each axis."""
    channels, height, width = like_BDHW.shape[1:]
    each = channels // 4
    rate_E = torch.exp(torch.arange(each, device=like_BDHW.device) * (-math.log(100.0) / max(1, each)))
    found = []
    for length, shape in ((height, (-1, 1)), (width, (1, -1))):
        place = (torch.arange(length, device=like_BDHW.device) + 0.5) / length * 2 * math.pi
        angle = (place * rate_E[:, None]).reshape(each, *shape).expand(each, height, width)
        found += [angle.sin(), angle.cos()]
    joined = torch.cat(found)
    return F.pad(joined, (0, 0, 0, 0, 0, channels - len(joined)))[None].to(like_BDHW.dtype)
