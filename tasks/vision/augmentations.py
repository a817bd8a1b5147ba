"""Changes of training images that keep their class, chosen by name in `task.augment`.

The numbers that all images of an epoch need are drawn on the CPU from the run's generator, and applied batch by
batch on the images' device. To add one, derive from `Augmentation`; a task of a plug-in lists its own in
`ImageTask.augmentations`. Must not know tasks.

Legend: B batch, P numbers drawn per image, C channels, H height, W width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation(ABC):
    """One change of images.

    Attributes:
        name: its value in `task.augment`.
        numbers: P, how many numbers it draws for each image.
    """

    name: ClassVar[str]
    numbers: ClassVar[int]

    @abstractmethod
    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """The changed images, float32 in 0..1 like those given; `draw_PB` is uniform in 0..1."""


class Flip(Augmentation):
    """Mirrors left and right, with probability 1/2."""

    name, numbers = "flip", 1

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        return torch.where(draw_PB[0, :, None, None, None] < 0.5, pixel_BCHW.flip(3), pixel_BCHW)


class Crop(Augmentation):
    """Moves by up to an eighth of the size in each direction, and fills with black."""

    name, numbers = "crop", 2

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        height, width = pixel_BCHW.shape[2:]
        pad = max(1, height // 8)
        down_B1, right_B1 = (draw_PB * (2 * pad + 1)).long().clamp(max=2 * pad)[:, :, None]
        row_BH = down_B1 + torch.arange(height, device=pixel_BCHW.device)
        column_BW = right_B1 + torch.arange(width, device=pixel_BCHW.device)
        padded_BHWC = F.pad(pixel_BCHW, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        image_B11 = torch.arange(len(pixel_BCHW), device=pixel_BCHW.device)[:, None, None]
        return padded_BHWC[image_B11, row_BH[:, :, None], column_BW[:, None, :]].permute(0, 3, 1, 2)


class Zoom(Augmentation):
    """Shows a square of 64 % to 100 % of the side, anywhere in the image, at full size."""

    name, numbers = "zoom", 3

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        side_B = 1 - 0.36 * draw_PB[0]
        across_B, down_B = ((2 * draw_PB[i] - 1) * (1 - side_B) for i in (1, 2))
        return _warped(pixel_BCHW, side_B, torch.zeros_like(side_B), across_B, down_B)


class Rotate(Augmentation):
    """Turns by up to 15 degrees, and fills with black."""

    name, numbers = "rotate", 1

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        turn_B = math.radians(15) * (2 * draw_PB[0] - 1)
        none_B = torch.zeros_like(turn_B)
        return _warped(pixel_BCHW, torch.ones_like(turn_B), turn_B, none_B, none_B)


class Erase(Augmentation):
    """Covers a square of a quarter to half of the side with the image's mean, with probability 1/2 (cutout)."""

    name, numbers = "erase", 4

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        height, width = pixel_BCHW.shape[2:]
        side_B = 0.25 + 0.25 * draw_PB[1]
        inside_BH = _within(height, draw_PB[2], side_B)
        inside_BW = _within(width, draw_PB[3], side_B)
        covered_BHW = inside_BH[:, :, None] & inside_BW[:, None, :] & (draw_PB[0] < 0.5)[:, None, None]
        return torch.where(covered_BHW[:, None], pixel_BCHW.mean(dim=(2, 3), keepdim=True), pixel_BCHW)


class Colour(Augmentation):
    """Changes brightness, contrast and, with three channels, saturation by up to 30 %."""

    name, numbers = "colour", 3

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        """See Augmentation."""
        bright_B, contrast_B, vivid_B = (0.7 + 0.6 * draw_PB)[:, :, None, None, None]
        grey_B1HW = pixel_BCHW.mean(dim=1, keepdim=True)
        out_BCHW = torch.lerp(grey_B1HW.expand_as(pixel_BCHW), pixel_BCHW, vivid_B)
        mean_B111 = out_BCHW.mean(dim=(1, 2, 3), keepdim=True)
        changed_BCHW: Tensor = bright_B * torch.lerp(mean_B111.expand_as(out_BCHW), out_BCHW, contrast_B)
        return changed_BCHW.clamp(0, 1)


SHIPPED: tuple[type[Augmentation], ...] = (Flip, Crop, Zoom, Rotate, Erase, Colour)


def draw(augmentations: tuple[Augmentation, ...], examples: int, generator: torch.Generator) -> Tensor:
    """float32 [P, N] in 0..1: the numbers that all augmentations need for an epoch, in their order."""
    return torch.rand(sum(each.numbers for each in augmentations), examples, generator=generator)


def apply(augmentations: tuple[Augmentation, ...], pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
    """The images changed by all augmentations, one after the other."""
    for each, mine_PB in zip(augmentations, draw_PB.split([each.numbers for each in augmentations]), strict=True):
        pixel_BCHW = each.apply(pixel_BCHW, mine_PB)
    return pixel_BCHW


def _within(length: int, place_B: Tensor, share_B: Tensor) -> Tensor:
    """bool [B, length]: the pixels of a stretch that covers `share_B` of the length, at `place_B` from 0 to 1."""
    first_B, step = place_B * (1 - share_B) * length, torch.arange(length, device=place_B.device) + 0.5
    return (step >= first_B[:, None]) & (step < (first_B + share_B * length)[:, None])


def _warped(pixel_BCHW: Tensor, side_B: Tensor, turn_B: Tensor, across_B: Tensor, down_B: Tensor) -> Tensor:
    """The part of each image with this side and centre (-1 to 1), turned, at the image's size; bilinear."""
    cos_B, sin_B = side_B * turn_B.cos(), side_B * turn_B.sin()
    rows = torch.stack([cos_B, -sin_B, across_B, sin_B, cos_B, down_B], dim=1)
    grid_BHW2 = F.affine_grid(rows.view(-1, 2, 3), list(pixel_BCHW.shape), align_corners=False)
    return F.grid_sample(pixel_BCHW, grid_BHW2, align_corners=False)
