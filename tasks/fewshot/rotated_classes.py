"""Virtual classes in the first stage: rotated images, trained on vertices that no class has yet.

Called by the task. A backbone that can tell a rotated 3 from a 3 separates more than the current classes need.
Later classes benefit, because the backbone will be frozen. Virtual classes are not used for anything else.

Legend: B batch, C channels, H height, W width, K label space.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fednc.common.learning.round_context import Guide
from fednc.tasks.vision.dataset import ImageBatch

TURNS = 3  # rotations by one, two and three quarter turns


def with_virtual(batch: ImageBatch, guide: Guide, base: int) -> tuple[ImageBatch, Guide]:
    """The batch with each image rotated with probability `method.virtual_share`, and a guide for these classes.

    The number of images stays the same. Draws from torch's global generator on the CPU, so that all devices get
    the same rotations.

    Args:
        base: number of classes of the first stage; class y with k quarter turns has vertex
            K - 3 base + (k - 1) base + y.
    """
    (pixel_BCHW, label_B), share = batch, guide.method.virtual_share
    turn_B = torch.randint(1, TURNS + 1, (len(label_B),)) * (torch.rand(len(label_B)) < share)
    turn_B = turn_B.to(label_B.device)
    first = len(guide.etf_KD) - TURNS * base
    virtual_B = torch.where(turn_B > 0, first + (turn_B - 1) * base + label_B, label_B)
    return (turned(pixel_BCHW, turn_B), virtual_B), _knowing(guide, base, share)


def turned(pixel_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Rotate each square image by its number of quarter turns."""
    found_BCHW = pixel_BCHW
    for turn in range(1, TURNS + 1):
        found_BCHW = torch.where(
            (turn_B == turn)[:, None, None, None], torch.rot90(pixel_BCHW, turn, (2, 3)), found_BCHW
        )
    return found_BCHW


def _knowing(guide: Guide, base: int, share: float) -> Guide:
    """The guide with the average counts of all classes, for losses that use the class prior."""
    count_K = guide.count_K.double() * (1 - share)
    count_K[-TURNS * base :] = (guide.count_K[:base] * share / TURNS).repeat(TURNS)
    return replace(guide, count_K=count_K, virtual=TURNS * base)
