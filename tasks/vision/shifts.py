"""Within-class shift of a simulated split: makes the images of clients differ from each other.

Applied once, when a part (or the test data) is loaded. The split's seed and the part's number determine
everything, so each client makes its own part and nothing is sent.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import NonNegative, Section, Share, SplitSection
from fednc.common.seeds import generator
from fednc.tasks.vision.dataset import as_unit_range

CHUNK = 4096  # images to rotate at a time; limits the memory of the sampling grid


class ShiftSection(Section):
    """Within-class shift of a simulated split: makes the images of clients differ from each other."""

    rotation_deg: NonNegative = Field(
        0.0, description="r: images are rotated by an angle from -r to +r degrees, depending on the client"
    )
    colour: Share = Field(0.0, description="strength of a per-client gain on each channel")
    noise: NonNegative = Field(0.0, description="standard deviation of added noise, growing from client to client")


class ImageSplit(SplitSection):
    """`[split]` of image tasks."""

    shift: ShiftSection = Field(default_factory=ShiftSection)


def shift_of(split: SplitSection) -> ShiftSection:
    """The shift of a split."""
    return split.shift if isinstance(split, ImageSplit) else ShiftSection()


def is_shifted(split: SplitSection) -> bool:
    """Whether a split changes any image."""
    shift = shift_of(split)
    return shift.rotation_deg > 0 or shift.colour > 0 or shift.noise > 0


def shift_part(pixel_NCHW: Tensor, split: SplitSection, part: int, purpose: str = "train") -> Tensor:
    """float32 pixels in 0..1: the images with the shift of part `part`.

    They are rotated by an angle that goes from -r to r over the parts. Each channel is multiplied by a gain in 1 -
    c .. 1 + c, drawn per part. The deviation of the added noise grows from 0 to `noise` over the parts. The result
    is clipped to 0..1.
    """
    shift, place = shift_of(split), _place(part, split.parts)
    pixel_NCHW = rotate(
        as_unit_range(pixel_NCHW), shift.rotation_deg * (2 * place - 1) if split.parts > 1 else 0.0
    )
    gain_C = 1 + shift.colour * (2 * torch.rand(pixel_NCHW.shape[1], generator=_stream(split, "colour", part)) - 1)
    noise = torch.randn(pixel_NCHW.shape, generator=_stream(split, f"noise-{purpose}", part))
    return (pixel_NCHW * gain_C[:, None, None] + shift.noise * place * noise).clamp(0, 1)


def shift_test(pixel_NCHW: Tensor, split: SplitSection) -> Tensor:
    """float32 pixels in 0..1: test images with an even mix of shifts; image i has that of part i % parts."""
    out_NCHW = as_unit_range(pixel_NCHW).clone()
    for part in range(split.parts):
        rows = slice(part, None, split.parts)
        out_NCHW[rows] = shift_part(pixel_NCHW[rows], split, part, purpose="test")
    return out_NCHW


def rotate(pixel_NCHW: Tensor, degrees: float) -> Tensor:
    """Rotate the images counter-clockwise about their centres, bilinear, filling with black. 0 is the identity."""
    if degrees == 0 or len(pixel_NCHW) == 0:
        return pixel_NCHW
    return torch.cat([_rotated(chunk, degrees) for chunk in pixel_NCHW.split(CHUNK)])


def _rotated(pixel_NCHW: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn_23 = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]])
    grid_NHW2 = F.affine_grid(turn_23.expand(len(pixel_NCHW), 2, 3), list(pixel_NCHW.shape), align_corners=False)
    return F.grid_sample(pixel_NCHW, grid_NHW2, align_corners=False)


def _place(part: int, parts: int) -> float:
    """0 for the first part, 1 for the last."""
    return part / (parts - 1) if parts > 1 else 0.0


def _stream(split: SplitSection, purpose: str, part: int) -> torch.Generator:
    return generator(split.seed, "shift", purpose, part)
