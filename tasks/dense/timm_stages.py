"""Feature maps of models of timm, for tasks with a value for every pixel.

Built by the models of dense tasks. Must not know data or losses.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.errors import ConfigError
from fednc.tasks.vision import timm_models

_PROBE = 64  # side of the picture with which a model is tried


class TimmStages(nn.Module):
    """The stages of a model of timm that are `stride` times smaller than the picture or more.

    Attributes:
        widths: the channels of each map.
    """

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        timm: Any = import_module("timm")
        self.net = timm.create_model(name, pretrained=False, in_chans=channels, features_only=True)
        self.kept = [i for i, step in enumerate(self.net.feature_info.reduction()) if step >= stride]
        self.widths = tuple(int(self.net.feature_info.channels()[i]) for i in self.kept)

    def forward(self, pixel_BCHW: Tensor) -> list[Tensor]:
        """One map or more."""
        maps = self.net(pixel_BCHW)
        return [_channels_first(maps[i], width) for i, width in zip(self.kept, self.widths, strict=True)]


class LastStage(nn.Module):
    """The last map [B, C, h, w] of a model of timm."""

    def __init__(self, stages: TimmStages) -> None:
        super().__init__()
        self.stages, self.width = stages, stages.widths[-1]

    def forward(self, pixel_BCHW: Tensor) -> Tensor:
        """The map."""
        found: list[Tensor] = self.stages(pixel_BCHW)
        return found[-1]


def timm_stages(name: str, channels: int, stride: int) -> TimmStages:
    """The stages of `timm:NAME`, tried with a small picture.

    Raises:
        ConfigError: no such model, or one that has no feature maps for pictures of any size.
        MissingExtraError: timm is not installed.
    """
    timm_models.inputs_of(name, channels)  # says what is missing, or that there is no such model
    try:
        found = TimmStages(name.removeprefix(timm_models.PREFIX), channels, stride)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found.eval()(torch.zeros(1, channels, _PROBE, _PROBE))
    except Exception as e:  # other people's code may raise anything
        raise ConfigError(
            f"task.backbone: timm cannot give the feature maps of {name!r} ({type(e).__name__}: {e}). Choose a "
            "model with stages, such as a ResNet, or derive a task with its own `backbone` (docs/multitask.md)."
        ) from e
    if not found.kept:
        raise ConfigError(f"task.backbone: no stage of {name!r} is {stride} times smaller than the picture")
    return found.train()


def _channels_first(value: Tensor, channels: int) -> Tensor:
    """Some models of timm put the channels last."""
    return value.permute(0, 3, 1, 2) if value.shape[1] != channels else value
