"""Models from pictures to a feature map: a small U-Net, and a DeepLab-like head over any of the image backbones.

Built by dense tasks. Sizes need not divide by anything: what is halved is rounded up, and what is enlarged gets
the size of what it is joined with. Must not know data, losses or methods.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from fednc.common.config.run import explain
from fednc.common.errors import ConfigError
from fednc.tasks.dense.sources.pixels import nearest_pixels
from fednc.tasks.dense.timm_stages import LastStage, timm_stages
from fednc.tasks.vision import timm_models
from fednc.tasks.vision.backbones import build_backbone
from fednc.tasks.vision.options import ImageOptions

GROUPS = 8  # divides every channel count below
LEVELS = 3
_LOWEST = -1e30  # for the score of a class that cannot be: minus infinity, mixed with weight 0, would be NaN


def enlarged(value_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """`value_BCHW` at another height and width, bilinear."""
    if tuple(value_BCHW.shape[2:]) == tuple(size):
        return value_BCHW
    return F.interpolate(value_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


def at_size(output_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A prediction at another height and width: scores and values bilinear, whole numbers without mixing them."""
    if not output_BCHW.is_floating_point():
        return nearest_pixels(output_BCHW, size)
    return enlarged(output_BCHW.float().clamp(min=_LOWEST), size)


class UNet(nn.Module):
    """Three levels of two convolutions, joined again on the way up (Ronneberger et al. 2015); keeps the size.

    The weights are channels-last, which makes convolutions on the CPU faster.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            [_double(given, out) for given, out in zip([channels, *widths], widths, strict=False)]
        )
        self.up = nn.ModuleList([_double(3 * out, out) for out in widths[-2::-1]])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixel_BCHW: Tensor) -> Tensor:
        """[B, width, H, W]."""
        found, levels = pixel_BCHW, []
        for level, layers in enumerate(self.down):
            found = layers(F.max_pool2d(found, 2, ceil_mode=True) if level else found)
            levels.append(found)
        for layers, skip in zip(self.up, levels[-2::-1], strict=True):
            found = layers(torch.cat([enlarged(found, skip.shape[2:]), skip], dim=1))
        return found


class DilatedPyramid(nn.Module):
    """Convolutions of several reaches and the mean of the picture, side by side (DeepLabv3, arXiv 1706.05587)."""

    def __init__(self, given: int, width: int, reaches: Sequence[int] = (2, 4)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(given, width, 1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()),
                *(
                    nn.Sequential(
                        nn.Conv2d(given, width, 3, padding=reach, dilation=reach, bias=False),
                        nn.GroupNorm(GROUPS, width),
                        nn.ReLU(),
                    )
                    for reach in reaches
                ),
            ]
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(given, width, 1), nn.ReLU())
        self.joined = nn.Sequential(
            nn.Conv2d((len(reaches) + 2) * width, width, 1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()
        )

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """[B, width, H, W]."""
        whole_BCHW = self.whole(feat_BCHW).expand(-1, -1, *feat_BCHW.shape[2:])
        joined: Tensor = self.joined(
            torch.cat([*(branch(feat_BCHW) for branch in self.branches), whole_BCHW], dim=1)
        )
        return joined


def deeplab(backbone: str, norm: str, channels: int, width: int) -> nn.Module:
    """A `DilatedPyramid` over the feature map of an image backbone; its result is smaller than the picture."""
    layers, given = feature_map(backbone, norm, channels, width)
    return nn.Sequential(layers, DilatedPyramid(given, width))


def feature_map(backbone: str, norm: str, channels: int, width: int) -> tuple[nn.Module, int]:
    """(an image backbone without its pooling, the channels of its feature map); of a model of timm the last stage.

    Raises:
        ConfigError: no such backbone, or one that has no feature map.
        MissingExtraError: the model is one of timm, which is not installed.
    """
    if timm_models.is_timm(backbone):
        stage = LastStage(timm_stages(backbone, channels, 1))
        return stage, stage.width
    try:
        options = ImageOptions.model_validate(
            {"classes": ("a", "b"), "model": backbone, "norm": norm, "channels": channels, "width": width}
        )
    except ValidationError as e:
        raise ConfigError(explain(e, "run file", prefix="task.backbone")) from e
    found, flat = build_backbone(options)
    layers = list(found) if isinstance(found, nn.Sequential) else []
    if (
        len(layers) < 2
        or not isinstance(layers[-2], nn.AdaptiveAvgPool2d)
        or not isinstance(layers[-1], nn.Flatten)
    ):
        raise ConfigError(
            f"task.backbone: {backbone!r} does not end by pooling a feature map, which a class per pixel needs. "
            "Choose another backbone, or derive a task with its own `backbone` (docs/segmentation.md)."
        )
    side = layers[-2].output_size
    cells = side**2 if isinstance(side, int) else 1
    return nn.Sequential(*layers[:-2]), flat // cells


def _double(given: int, out: int) -> nn.Module:
    """Two 3x3 convolutions, each with normalisation and activation."""
    layers: list[nn.Module] = []
    for first in (given, out):
        conv = nn.Conv2d(first, out, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, nn.GroupNorm(GROUPS, out), nn.ReLU()]
    return nn.Sequential(*layers)
