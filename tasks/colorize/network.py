"""The networks: two encoders, attention between them, a decoder with skips; and the adversary.

Built by the task. Pictures have values of -1 to 1. Must not know data, losses or optimisers.

Legend: B batch, C channels, H height, W width, T tokens, h and w height and width of the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fednc.tasks.colorize.attention import SLOPE, attention_block
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.dense.models import enlarged

LINE, REFERENCE = slice(0, 1), slice(1, 4)  # channels of the input
_GROUPS = 4


class Encoder(nn.Module):
    """Two convolutions at each level; the first of each level but one halves the picture.

    The tokens are all layers' results side by side, pooled to the last level's grid.
    """

    def __init__(self, given: int, widths: Sequence[int], norm: str) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.first.append(conv_block(given, width, norm, stride=1 if level == 0 else 2))
            self.second.append(conv_block(width, width, norm))
            given = width

    def forward(self, picture_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(tokens' map [B, C, h, w], each level's result from large to small)."""
        found, every, skips = picture_BCHW, [], []
        for first, second in zip(self.first, self.second, strict=True):
            half = first(found)
            found = second(half)
            every += [half, found]
            skips.append(found)
        grid = (found.shape[2], found.shape[3])
        pooled = [each if each.shape[2:] == grid else F.adaptive_avg_pool2d(each, grid) for each in every]
        return torch.cat(pooled, dim=1), skips


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(channels, channels, norm),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels, norm),
        )

    def forward(self, value_BCHW: Tensor) -> Tensor:
        """[B, C, H, W]."""
        found: Tensor = value_BCHW + self.layers(value_BCHW)
        return found


class Decoder(nn.Module):
    """From the token grid back to the picture, joined at each level with the line art's encoder."""

    def __init__(self, given: int, widths: Sequence[int], norm: str) -> None:
        super().__init__()
        last = widths[-1]
        self.entry = nn.Sequential(conv_block(given, last, norm), conv_block(last, last, norm))
        above = [*widths[:0:-1]]
        self.up = nn.ModuleList(
            [conv_block(wide + width, width, norm) for wide, width in zip(above, widths[-2::-1], strict=True)]
        )
        self.exit = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, value_BCHW: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """[B, 3, H, W], -1 to 1."""
        found = self.entry(value_BCHW)
        for layers, skip in zip(self.up, skips[-2::-1], strict=True):
            found = layers(torch.cat([enlarged(found, skip.shape[2:]), skip], dim=1))
        picture: Tensor = self.exit(found).tanh()
        return picture


class Generator(nn.Module):
    """Line art and a reference [B, 4, H, W] to a coloured picture [B, 3, H, W].

    Attributes:
        channels: C of the tokens.
    """

    def __init__(self, options: ColorizeOptions) -> None:
        super().__init__()
        widths, norm = options.widths, options.norm
        self.channels = token_channels(options)
        self.line = Encoder(1, widths, norm)
        self.reference = Encoder(3, widths, norm)
        self.cross = self._attention(options)
        self.own = self._attention(options) if options.self_attention else None
        blocks = [ResidualBlock(self.channels, norm) for _ in range(options.residual_blocks)]
        self.residual = nn.Sequential(*blocks)
        self.decoder = Decoder(2 * self.channels, widths, norm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a CPU

    def _attention(self, options: ColorizeOptions) -> nn.Module:
        flat = nn.BatchNorm1d(self.channels) if options.norm == "batch" else nn.GroupNorm(_GROUPS, self.channels)
        return attention_block(options.attention, self.channels, flat)

    def fused(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(tokens [B, C, h, w] of the line art with what attention brought from the reference, its skips)."""
        line_BChw, skips = self.line(inputs[:, LINE])
        reference_BChw, _ = self.reference(inputs[:, REFERENCE])
        token_BTC = self.cross(_tokens(line_BChw), _tokens(reference_BChw))
        if self.own is not None:
            token_BTC = self.own(token_BTC, token_BTC)
        return token_BTC.transpose(1, 2).reshape(line_BChw.shape), skips

    def painted(self, fused_BChw: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The coloured picture, from the result of `fused`."""
        outer_BChw = fused_BChw + self.residual(fused_BChw) if len(self.residual) else fused_BChw
        found: Tensor = self.decoder(torch.cat([outer_BChw, fused_BChw], dim=1), skips)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, 3, H, W], -1 to 1."""
        return self.painted(*self.fused(inputs))


class Adversary(nn.Sequential):
    """Judges patches of (picture, line art) [B, 4, H, W]; spectral normalisation bounds every layer (PatchGAN)."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for given, width in zip([4, *widths], widths, strict=False):
            layers += [spectral_norm(nn.Conv2d(given, width, 4, stride=2, padding=1)), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))


def conv_block(given: int, out: int, norm: str, stride: int = 1) -> nn.Module:
    """Convolution, normalisation, activation."""
    conv = nn.Conv2d(given, out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, _norm(out, norm), nn.LeakyReLU(SLOPE))


def token_channels(options: ColorizeOptions) -> int:
    """C: two layers of every level."""
    return 2 * sum(options.widths)


def token_grid(options: ColorizeOptions) -> tuple[int, int]:
    """Height and width of the token grid."""
    height, width = options.size
    for _ in options.widths[1:]:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _norm(channels: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(_GROUPS, channels)


def _tokens(value_BChw: Tensor) -> Tensor:
    return value_BChw.flatten(2).transpose(1, 2)
