"""The deformable mixer: mixes channels, then lets each channel of each pixel look at a place that it learns.

After DeMT (Xu et al., AAAI 2023, arXiv 2301.03461). A mixer is the encoder of one task. Every operation works on
one picture at a time, so that no picture changes the result of another. Must not know data or losses.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 9  # places around a pixel from which its offsets are computed


def sampled_at(value_BCHW: Tensor, offset_B2CHW: Tensor) -> Tensor:
    """[B, C, H, W]: each channel at its own place, bilinear; zero beyond the border.

    Channel c of pixel (y, x) becomes the value of channel c at (y + offset[0, c], x + offset[1, c]).

    Args:
        offset_B2CHW: in pixels, down and right.
    """
    batch, channels, height, width = value_BCHW.shape
    row_HW, column_HW = _places(height, width, value_BCHW)
    # `grid_sample` counts from -1 at the left edge of the first pixel to 1 at the right edge of the last one.
    y_BCHW = (2 * (row_HW + offset_B2CHW[:, 0]) + 1) / height - 1
    x_BCHW = (2 * (column_HW + offset_B2CHW[:, 1]) + 1) / width - 1
    grid = torch.stack([x_BCHW, y_BCHW], dim=-1).reshape(batch * channels, height, width, 2)
    found = F.grid_sample(
        value_BCHW.reshape(batch * channels, 1, height, width), grid, padding_mode="zeros", align_corners=False
    )
    return found.reshape(batch, channels, height, width)


def _places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    row_H = torch.arange(height, device=like.device, dtype=like.dtype)
    column_W = torch.arange(width, device=like.device, dtype=like.dtype)
    return row_H[:, None].expand(height, width), column_W[None, :].expand(height, width)


class Offsets(nn.Module):
    """Offsets [B, 2, C, H, W] in pixels: a 3x3 convolution of features to nine places, one to all channels.

    The second one begins at zero, so a new layer samples every pixel where it is. The first one sees, beside the
    features, where the pixel is in the picture, from -1 to 1: unlike pixel numbers, that does not grow with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.places = nn.Conv2d(channels, 2 * TAPS, 3, padding=1)
        self.spread = nn.Conv2d(2 * TAPS, 2 * channels, 3, padding=1, groups=2)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)  # type: ignore[arg-type]

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """The first group makes the offsets downwards, the second one those to the right."""
        batch, channels, height, width = feat_BCHW.shape
        place_BPHW = self.places(feat_BCHW) + self._where(height, width, feat_BCHW)
        found: Tensor = self.spread(place_BPHW)
        return found.reshape(batch, 2, channels, height, width)

    @staticmethod
    def _where(height: int, width: int, like: Tensor) -> Tensor:
        """[2 * TAPS, H, W]: rows of the nine places, then their columns, in -1..1 over the picture."""
        row_HW, column_HW = _places(height, width, like)
        step_T = torch.tensor([-1.0, 0.0, 1.0], device=like.device, dtype=like.dtype)
        down_T, right_T = step_T.repeat_interleave(3), step_T.repeat(3)
        y_THW = (2 * (row_HW + down_T[:, None, None]) + 1) / height - 1
        x_THW = (2 * (column_HW + right_T[:, None, None]) + 1) / width - 1
        return torch.cat([y_THW, x_THW])


class MixerBlock(nn.Module):
    """Mix the channels of each pixel, then add what the channels find at the places that they look at."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.mix_norm = normalisation(norm, channels)
        self.offsets = Offsets(channels)
        self.look = nn.Conv2d(channels, channels, 1)
        self.look_norm = normalisation(norm, channels)

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """[B, C, H, W]."""
        mixed_BCHW = self.mix_norm(F.gelu(self.mix(feat_BCHW)))
        seen_BCHW = self.look(sampled_at(mixed_BCHW, self.offsets(mixed_BCHW)))
        found: Tensor = mixed_BCHW + self.look_norm(F.gelu(seen_BCHW))
        return found


def normalisation(kind: str, channels: int) -> nn.Module:
    """`group` looks at one picture at a time, also in training; `batch`, as published, at the batch."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8, channels)
