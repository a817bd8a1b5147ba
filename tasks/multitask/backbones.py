"""Backbones from a picture to feature maps of several sizes: a small pyramid, or any image model.

Built by the task. The maps are joined at the size of the first one. Must not know data or losses.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fednc.tasks.dense.models import enlarged, feature_map
from fednc.tasks.dense.timm_stages import timm_stages
from fednc.tasks.vision import timm_models

PYRAMID = "pyramid"
STAGES = 4
_PROBE = 64  # side of the picture with which the maps of layers are looked up


class Pyramid(nn.Module):
    """Four stages, each half the size of the one before, from a quarter of the picture's size down."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        widths = [width * step for step in range(1, STAGES + 1)]
        first = 1 if stride == 2 else 2
        self.stem = _conv(channels, width, first)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_conv(given, out, 2), _conv(out, out, 1))
                for given, out in zip([width, *widths], widths, strict=False)
            ]
        )
        self.widths = tuple(widths)

    def forward(self, pixel_BCHW: Tensor) -> list[Tensor]:
        """Four maps."""
        found, maps = self.stem(pixel_BCHW), []
        for stage in self.stages:
            found = stage(found)
            maps.append(found)
        return maps


class Layers(nn.Module):
    """The last map of each size of a chain of layers, from `stride` times smaller than the picture on."""

    def __init__(self, layers: nn.Module, stride: int) -> None:
        super().__init__()
        self.layers, self.stride = layers, stride

    def forward(self, pixel_BCHW: Tensor) -> list[Tensor]:
        """One map or more."""
        assert isinstance(self.layers, nn.Sequential)
        height = pixel_BCHW.shape[2]
        found, maps = pixel_BCHW, dict[int, Tensor]()
        for layer in self.layers:
            found = layer(found)
            maps[found.shape[2]] = found
        small = [each for size, each in maps.items() if size * self.stride <= height + self.stride - 1]
        return small or [found]


def build(name: str, norm: str, channels: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """(a module from pictures to a list of maps, the channels of all of them together).

    Raises:
        ConfigError: no such model, or one that has no feature maps.
        MissingExtraError: the model is one of timm, which is not installed.
    """
    if name == PYRAMID:
        made = Pyramid(channels, width, stride)
        return made, sum(made.widths)
    if timm_models.is_timm(name):
        stages = timm_stages(name, channels, stride)
        return stages, sum(stages.widths)
    found = Layers(feature_map(name, norm, channels, width)[0], stride)
    return found, _channels_of(found, channels)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """All maps, at the size of the first one, side by side."""
    size = maps[0].shape[2:]
    return torch.cat([enlarged(each, size) for each in maps], dim=1)


def _channels_of(layers: nn.Module, channels: int) -> int:
    """Found with a small picture on a copy without memory; leaves the generator as it was."""
    was = layers.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        maps = layers.eval()(torch.zeros(1, channels, _PROBE, _PROBE))
    layers.train(was)
    return sum(each.shape[1] for each in maps)


def _conv(given: int, out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(given, out, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(8, out), nn.ReLU())
