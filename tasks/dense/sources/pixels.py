"""Pixels of picture files: brought to 8 bits, without transparency, and maps resized without mixing values.

Used by every reader of pictures with maps, of this and of other tasks. Knows no files and no kinds of maps.

Legend: H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fednc.common.errors import DataError
from fednc.tasks.dense.sources.pictures import Array
from fednc.tasks.vision.sources.transparency import on_white

_LONG = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's grey pictures of 16 bits


def in_colour(image: Image.Image, source: object) -> Image.Image:
    """The picture in 8 bits of red, green and blue; what is transparent lies on white.

    Pillow alone would clip 16 bits to white.

    Raises:
        DataError: numbers of 32 bits, of which nobody says which one is white.
    """
    if image.mode in _LONG or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"{source}: has 32 bits a pixel (mode {image.mode}); save the picture with 8 or 16")
    return on_white(image).convert("RGB")


def in_grey(image: Image.Image, source: object) -> Image.Image:
    """As `in_colour`, in 8 bits of grey."""
    is_plain = image.mode == "L" and not image.has_transparency_data
    return image if is_plain else in_colour(image, source).convert("L")


def resized_picture(image: Image.Image, size: tuple[int, int]) -> Array:
    """uint8 [H, W, 3] of a colour picture at another height and width, bilinear."""
    is_fitting = image.size == size[::-1]
    return np.asarray(image if is_fitting else image.resize(size[::-1], Image.Resampling.BILINEAR))


def middles(given: tuple[int, int], size: tuple[int, int]) -> tuple[Array, Array]:
    """(rows [H, 1], columns [W]) of the `given` pixels in the middle of each pixel of another `size`.

    `values[rows, columns]` are the values at that size. The middle, as in pictures that are resized: with any
    other pixel of the cell, maps would be shifted against their pictures.
    """
    row, column = (
        (2 * np.arange(wanted) + 1) * have // (2 * wanted) for have, wanted in zip(given, size, strict=True)
    )
    return row[:, None], column


def nearest(values: Array, size: tuple[int, int]) -> Array:
    """The values [H, W] or [H, W, C] at another height and width, without mixing them."""
    found: Array = values[middles((values.shape[0], values.shape[1]), size)]
    return found


def nearest_pixels(value_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """As `nearest`, of a tensor whose last two axes are height and width, on its device."""
    given = (value_HW.shape[-2], value_HW.shape[-1])
    row_H1, column_W = (torch.from_numpy(each).to(value_HW.device) for each in middles(given, size))
    return value_HW[..., row_H1, column_W]
