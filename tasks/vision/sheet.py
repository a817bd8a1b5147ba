"""Draws small pictures to show to users: images that a model got wrong, images with what it predicts.

Called by image tasks. Knows no model.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from fednc.tasks.vision.dataset import as_unit_range

_SIDE, _LINE = 64, 24  # pixels of a picture and of the text below it
_COLUMNS = 6


def sheet(pixel_NCHW: Tensor, texts: Sequence[tuple[str, str]]) -> bytes:
    """A PNG with all images in rows and two lines of text below each."""
    columns = min(_COLUMNS, len(texts))
    size = columns * (_SIDE + 4), math.ceil(len(texts) / columns) * (_SIDE + _LINE + 4)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for place, (pixel_CHW, lines) in enumerate(zip(pixel_NCHW.cpu(), texts, strict=True)):
        x, y = place % columns * (_SIDE + 4), place // columns * (_SIDE + _LINE + 4)
        bytes_HWC = (as_unit_range(pixel_CHW) * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).numpy()
        page.paste(Image.fromarray(bytes_HWC).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
        for row, line in enumerate(lines):
            draw.text((x, y + _SIDE + 12 * row), line[:12], fill="black")
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
