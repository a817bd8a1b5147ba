"""Pictures for people: a label map over its picture, beside the truth, with a legend.

Called by dense tasks at the end of a round and by `fednc predict`. Knows no model.

Legend: C channels, H height, W width, K classes.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fednc.common.tasks.splits import Index
from fednc.tasks.dense.maps import VOID

SHOWN = 6  # test pictures on the sheet of examples
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_LEAST = 160  # pixels; smaller pictures are enlarged to at least this height
_GAP, _LINE = 4, 14
_TURN = 0.618034  # of the colour circle from one class to the next: neighbours differ clearly
_WRONG, _RIGHT = (220, 40, 40), (60, 60, 60)


def colours(classes: int) -> Bytes:
    """uint8 [256, 3]: a colour for each class, black for every other value."""
    found = np.zeros((VOID + 1, 3), np.uint8)
    for number in range(classes):
        value, depth = (0.95, 0.65) if number % 2 else (0.75, 0.9)
        red_green_blue = colorsys.hsv_to_rgb(number * _TURN % 1, depth, value)
        found[number] = [round(255 * part) for part in red_green_blue]
    return found


def painted(pixel_HW3: Bytes, label_HW: Bytes, classes: int, share: float = 0.55) -> Bytes:
    """The picture with the classes' colours over it; void stays as it is."""
    colour_HW3 = colours(classes)[label_HW]
    mixed_HW3 = (1 - share) * pixel_HW3 + share * colour_HW3
    return np.where((label_HW == VOID)[..., None], pixel_HW3, mixed_HW3).round().astype(np.uint8)


def mistakes(guess_HW: Bytes, truth_HW: Bytes) -> Bytes:
    """Red where the prediction is wrong, dark where it is right, black where nothing is known."""
    found = np.zeros((*guess_HW.shape, 3), np.uint8)
    found[guess_HW == truth_HW] = _RIGHT
    found[guess_HW != truth_HW] = _WRONG
    found[truth_HW == VOID] = 0
    return found


def overlay(pixel_HW3: Bytes, guess_HW: Bytes, truth_HW: Bytes | None, names: Sequence[str]) -> Image.Image:
    """Picture, prediction and, where labels are known, truth and mistakes in a row, with a legend below."""
    titles, panels = ["picture", "prediction"], [pixel_HW3, painted(pixel_HW3, guess_HW, len(names))]
    if truth_HW is not None and (truth_HW != VOID).any():
        titles += ["truth", "mistakes"]
        panels += [painted(pixel_HW3, truth_HW, len(names)), mistakes(guess_HW, truth_HW)]
    times = -(-_LEAST // pixel_HW3.shape[0])
    height, width = pixel_HW3.shape[0] * times, pixel_HW3.shape[1] * times
    used = [number for number in range(len(names)) if (guess_HW == number).any() or _has(truth_HW, number)]
    across = max(1, (len(panels) * (width + _GAP)) // 110)
    lines = -(-len(used) // across)
    page = Image.new("RGB", (len(panels) * (width + _GAP), _LINE + height + _GAP + lines * _LINE), "white")
    draw = ImageDraw.Draw(page)
    for place, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        draw.text((place * (width + _GAP), 0), title, fill="black")
        page.paste(
            Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST),
            (place * (width + _GAP), _LINE),
        )
    table = colours(len(names))
    for place, number in enumerate(used):
        x, y = place % across * 110, _LINE + height + _GAP + place // across * _LINE
        draw.rectangle((x, y + 1, x + 11, y + 11), fill=tuple(int(part) for part in table[number]))
        draw.text((x + 15, y), names[number][:14], fill="black")
    return page


def sheet(pages: Sequence[Image.Image]) -> Image.Image:
    """Several pictures below each other."""
    found = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), "white")
    top = 0
    for page in pages:
        found.paste(page, (0, top))
        top += page.height
    return found


def as_png(image: Image.Image) -> bytes:
    """The file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def evenly_chosen(examples: int) -> Index:
    """Numbers of the examples on a sheet for people: evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, examples - 1, min(SHOWN, examples)).round().astype(np.int64))


def as_bytes(pixel_CHW: Tensor, mean_C: Sequence[float], std_C: Sequence[float]) -> Bytes:
    """uint8 [H, W, 3] of a normalised picture."""
    pixel_HWC = pixel_CHW.detach().cpu().permute(1, 2, 0).numpy() * np.asarray(std_C) + np.asarray(mean_C)
    found: Bytes = (pixel_HWC.clip(0, 1) * 255).round().astype(np.uint8)
    return found


def _has(label_HW: Bytes | None, value: int) -> bool:
    return label_HW is not None and bool((label_HW == value).any())
