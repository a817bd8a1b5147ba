"""Virtual classes of the beginning: turned images, learnt on vertices that no class has yet.

Called by the task. Features that tell a turned 3 from a 3 tell more apart than today's classes ask for, which is
what later classes need of a backbone that will be frozen. Nothing of a virtual class is kept but that.

Legend: B batch, C channels, H height, W width, K label space.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fednc.common.learning.round_context import Guide
from fednc.tasks.vision.dataset import ImageBatch

TURNS = 3  # quarter turns that are not the image itself


def with_virtual(batch: ImageBatch, guide: Guide, base: int) -> tuple[ImageBatch, Guide]:
    """The batch, of which each image is turned with chance `method.virtual_share`, and a guide that knows them.

    As many images as before; drawn from torch's global generator, on the CPU, so that every device sees the same.

    Args:
        base: classes of the beginning; turned k times, class y has vertex K - 3 base + (k - 1) base + y.
    """
    (pixel_BCHW, label_B), share = batch, guide.method.virtual_share
    turn_B = torch.randint(1, TURNS + 1, (len(label_B),)) * (torch.rand(len(label_B)) < share)
    turn_B = turn_B.to(label_B.device)
    first = len(guide.etf_KD) - TURNS * base
    virtual_B = torch.where(turn_B > 0, first + (turn_B - 1) * base + label_B, label_B)
    return (turned(pixel_BCHW, turn_B), virtual_B), _knowing(guide, base, share)


def turned(pixel_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Each square image by its number of quarter turns."""
    found_BCHW = pixel_BCHW
    for turn in range(1, TURNS + 1):
        found_BCHW = torch.where(
            (turn_B == turn)[:, None, None, None], torch.rot90(pixel_BCHW, turn, (2, 3)), found_BCHW
        )
    return found_BCHW


def _knowing(guide: Guide, base: int, share: float) -> Guide:
    """Counts as they are on average, for losses that know the class prior."""
    count_K = guide.count_K.double() * (1 - share)
    count_K[-TURNS * base :] = (guide.count_K[:base] * share / TURNS).repeat(TURNS)
    return replace(guide, count_K=count_K, virtual=TURNS * base)
