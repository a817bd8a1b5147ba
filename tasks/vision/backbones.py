"""Backbones for small images: a CNN for CPUs, one without normalisation, ResNet-18 and MobileNetV2 for 32x32.

Any other model comes from timm (`timm_models.py`).

Built by the task. A model is backbone -> linear projection -> head, without an activation after the projection:
the vertices of the frame point everywhere, and features that cannot be negative would reach a cosine of at most
0.71. Must not know data, losses or methods.

Legend: B batch, C channels, H height, W width, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from fednc.common.tasks.blocks import Blocks
from fednc.tasks.vision import timm_models
from fednc.tasks.vision.options import ImageOptions

GROUPS = 8  # divides every channel count below


def build_backbone(options: ImageOptions) -> tuple[nn.Module, int]:
    """(backbone from images to [B, width], that width), initialised from torch's global generator.

    The weights are channels-last, which makes convolutions on the CPU 1.4 times as fast.
    """
    if timm_models.is_timm(options.model):
        return timm_models.build(options.model, options.channels, options.size)
    builders = {"cnn": _cnn, "plain": _plain, "resnet18": _resnet18, "mobilenetv2": _mobilenetv2}
    names, layers, width = builders[options.model](options)
    backbone = Blocks(*layers, names=names)
    # Without normalisation the signal must keep its size in the forward pass; with it, this does not matter.
    mode: Literal["fan_in", "fan_out"] = "fan_in" if options.model == "plain" else "fan_out"
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
    return backbone.to(memory_format=torch.channels_last), width  # type: ignore[call-overload]


def width_of(options: ImageOptions) -> int:
    """Width of the backbone's features. Draws no numbers and allocates no memory."""
    if timm_models.is_timm(options.model):
        return timm_models.width_of(options.model, options.channels, options.size)
    with torch.device("meta"):
        return build_backbone(options)[1]


# Names of runs of layers, for `task.freeze`; all layers; width of the features.
_Built = tuple[list[tuple[str, int]], list[nn.Module], int]


def _cnn(options: ImageOptions) -> _Built:
    narrow, wide = options.width, 2 * options.width
    layers: list[nn.Module] = []
    for given, out in ((options.channels, narrow), (narrow, wide)):
        # Pooling before the normalisation gives the same maxima with a quarter of the work.
        layers += [_conv(given, out), nn.MaxPool2d(2), _norm(options.norm, out), nn.ReLU()]
    layers += [*_conv_norm_relu(options.norm, wide, wide), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return [("layer1", 4), ("layer2", 4), ("layer3", 3)], layers, 9 * wide


def _plain(options: ImageOptions) -> _Built:
    """Seven convolutions without normalisation or shortcuts, so it depends strongly on its initialisation."""
    layers: list[nn.Module] = []
    given: int = options.channels
    for stride in (1, 1, 2, 1, 2, 1, 1):
        conv = nn.Conv2d(given, options.width, 3, stride, padding=1)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, nn.ReLU()]
        given = options.width
    names = [(f"layer{number}", 2) for number in range(1, 8)]
    return names, [*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()], 4 * given


def _resnet18(options: ImageOptions) -> _Built:
    """He et al. 2016 (arXiv 1512.03385), with a 3x3 stem of stride 1 and no pooling, as is usual for CIFAR."""
    layers = _conv_norm_relu(options.norm, options.channels, 64)
    given = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Basic(options.norm, given, out, stride), _Basic(options.norm, out, out, 1)]
        given = out
    names = [("stem", 3), *((f"layer{number}", 2) for number in range(1, 5))]
    return names, [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], given


def _mobilenetv2(options: ImageOptions) -> _Built:
    """Sandler et al. 2018 (arXiv 1801.04381), stride 1 in the stem and the second stage, so 32x32 becomes 4x4."""
    layers = _conv_norm_relu(options.norm, options.channels, 32, act=nn.ReLU6)
    given = 32
    for grow, out, stride in _mobile_plan():
        layers.append(_Inverted(options.norm, given, out, stride, grow))
        given = out
    layers += _conv_norm_relu(options.norm, given, 1280, kernel=1, act=nn.ReLU6)
    names = [("stem", 3), *((f"layer{number}", blocks) for number, (_, _, blocks, _) in enumerate(_MOBILE, 1))]
    return [*names, ("top", 3)], [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], 1280


# (expansion, channels, blocks, stride of the first block) of each stage.
_MOBILE = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _mobile_plan() -> Iterator[tuple[int, int, int]]:
    """(expansion, channels, stride) of each block."""
    for grow, out, blocks, first_stride in _MOBILE:
        for i in range(blocks):
            yield grow, out, first_stride if i == 0 else 1


class _Basic(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is projected if the shape changes."""

    def __init__(self, norm: str, given: int, out: int, stride: int) -> None:
        super().__init__()
        first = _conv_norm_relu(norm, given, out, stride=stride)
        self.body = nn.Sequential(*first, _conv(out, out), _norm(norm, out))
        same = stride == 1 and given == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_conv(given, out, kernel=1, stride=stride), _norm(norm, out))
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(self.body(x_BCHW) + self.shortcut(x_BCHW))


class _Inverted(nn.Module):
    """Widen, filter each channel, narrow without activation; with a shortcut if the shape stays the same."""

    def __init__(self, norm: str, given: int, out: int, stride: int, grow: int) -> None:
        super().__init__()
        wide = given * grow
        widen = _conv_norm_relu(norm, given, wide, kernel=1, act=nn.ReLU6) if grow > 1 else []
        depthwise = _conv_norm_relu(norm, wide, wide, stride=stride, groups=wide, act=nn.ReLU6)
        self.body = nn.Sequential(*widen, *depthwise, _conv(wide, out, kernel=1), _norm(norm, out))
        self.same = stride == 1 and given == out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.body(x_BCHW)
        return x_BCHW + out_BCHW if self.same else out_BCHW


def _conv_norm_relu(
    norm: str,
    given: int,
    out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    return [_conv(given, out, kernel=kernel, stride=stride, groups=groups), _norm(norm, out), act()]


def _conv(given: int, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(given, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(GROUPS, channels)
