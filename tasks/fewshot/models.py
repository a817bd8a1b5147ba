"""The model: a backbone whose features are unit vectors, and a projection into the frame's space.

Built by the task. The image task's backbones with an averaged feature map, and the projection of NC-FSCIL (arXiv
2302.03004); or, with `task.features = "raw"`, neither unit vectors nor a projection. Must not know sessions.

Legend: B batch, C backbone width, D feature width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fednc.common.learning.frame import unit
from fednc.common.tasks.blocks import Blocks
from fednc.common.tasks.classifier import ClassifierModel
from fednc.tasks.fewshot.options import FewShotOptions
from fednc.tasks.vision import backbones

SLOPE = 0.1
LONGEST = 4.0  # root mean square of a raw feature's coordinates that the memory can hold; layers give about 1


class FewShotModel(ClassifierModel):
    """Backbone, projection and head, with access to the backbone's features."""

    def pooled(self, pixel_BCHW: Tensor) -> Tensor:
        """Features of the backbone [B, C], of length at most 1, used for sums, memory and rehearsal."""
        feat_BC: Tensor = self.backbone(pixel_BCHW)
        return feat_BC


class Unit(nn.Module):
    """Normalises rows to length 1. Sums of such features have a bound that the server can check."""

    def forward(self, feat_BC: Tensor) -> Tensor:
        """[B, C] to unit [B, C]."""
        return unit(feat_BC)


class Shortened(nn.Module):
    """Divides rows by one fixed length, and shortens those that are still longer than 1.

    So sums of raw features have the bound that the server checks, and nearest means stay nearest.
    """

    def forward(self, feat_BC: Tensor) -> Tensor:
        """[B, C] to [B, C] of length at most 1."""
        divided_BC = feat_BC / _longest(feat_BC)
        bounded_BC: Tensor = divided_BC / divided_BC.norm(dim=1, keepdim=True).clamp(min=1)
        return bounded_BC


class Lengthened(nn.Module):
    """The inverse of `Shortened`, in place of a projection."""

    def forward(self, feat_BC: Tensor) -> Tensor:
        """[B, C]."""
        return feat_BC * _longest(feat_BC)


def _longest(feat_BC: Tensor) -> float:
    return LONGEST * math.sqrt(feat_BC.shape[1])


class Projection(nn.Module):
    """Three layers and a linear shortcut, from unit features [B, C] to [B, D]; no final activation."""

    def __init__(self, given: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.given = given
        self.body = nn.Sequential(
            nn.Linear(given, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, dim, bias=False),
        )
        self.shortcut = nn.Linear(given, dim, bias=False)

    def forward(self, feat_BC: Tensor) -> Tensor:
        """[B, D]. Scales unit features first, so that their coordinates have about unit variance."""
        feat_BC = feat_BC * math.sqrt(self.given)
        out_BD: Tensor = self.body(feat_BC) + self.shortcut(feat_BC)
        return out_BD


def build_backbone(options: FewShotOptions) -> tuple[nn.Module, int]:
    """(layers that give features of length at most 1, their width), initialised from torch's global generator."""
    layers, names, width = _layers(options)
    last = Unit() if options.features == "unit" else Shortened()
    return Blocks(*layers, nn.AdaptiveAvgPool2d(options.cells), nn.Flatten(), last, names=names), width


def width_of(options: FewShotOptions) -> int:
    """C. Draws no numbers and allocates no memory."""
    with torch.device("meta"):
        return _layers(options)[2]


def _layers(options: FewShotOptions) -> tuple[list[nn.Module], tuple[tuple[str, int], ...], int]:
    """The image task's backbone up to its feature map, its blocks, and the width after averaging over cells."""
    found, width = backbones.build_backbone(options)
    assert isinstance(found, Blocks)
    *layers, pool, _ = found  # every backbone ends by pooling and flattening
    assert isinstance(pool, nn.AdaptiveAvgPool2d)
    assert isinstance(pool.output_size, int)
    return layers, found.names, width // pool.output_size**2 * options.cells**2
