"""The input of an exported image model: pixels as image libraries give them. The graph normalises them.

Resizing stays outside, because a graph that resizes would not give the bits of the reader that clients use.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fednc.common.tasks.graph_input import GraphInput
from fednc.tasks.vision.dataset import as_unit_range
from fednc.tasks.vision.options import ImageOptions


def pixel_input(options: ImageOptions) -> GraphInput:
    """`pixels`: bytes [B, H, W, C] of the run's size."""
    size, channels = options.size, options.channels
    mode = "L" if channels == 1 else "RGB"
    return GraphInput(
        name="pixels",
        dtype=torch.uint8,
        shape=(size, size, channels),
        prepare=partial(_normalised, mean=options.mean, std=options.std),
        raw_of=partial(_pixels_of, mean=options.mean, std=options.std),
        note=f"resize images to {size}x{size}, convert them to {mode} (lay transparent ones on white first), "
        "bytes 0 to 255; the graph normalises them",
        reading=(
            "from PIL import Image",
            f'image = Image.open("image.png").convert("{mode}").resize(({size}, {size}), Image.BILINEAR)',
            f"pixels = np.asarray(image, np.uint8).reshape(1, {size}, {size}, {channels})",
        ),
    )


def _normalised(pixel_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (as_unit_range(pixel_BHWC.permute(0, 3, 1, 2)) - _per_channel(mean)) / _per_channel(std)


def _pixels_of(inputs_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    unit_BCHW = inputs_BCHW * _per_channel(std) + _per_channel(mean)
    return (unit_BCHW * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]
