"""Pictures for people: line art, reference, result and truth side by side.

Called by the task at the end of a round and by `fednc predict`. Knows no model.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fednc.tasks.dense.pictures import Bytes, as_bytes

_HALF = (0.5,) * 3  # mean and deviation of pictures of -1 to 1
_LEAST, _GAP, _LINE = 96, 4, 14  # pixels


def pixels(picture_CHW: Tensor) -> Bytes:
    """uint8 [H, W, 3] of a picture of -1 to 1 with one channel or three; grey where it is not known."""
    found = picture_CHW.detach().float().nan_to_num(0.0)
    return as_bytes(found.expand(3, -1, -1), _HALF, _HALF)


def table(titles: Sequence[str], rows: Sequence[Sequence[Bytes]]) -> Image.Image:
    """Rows of pictures under their titles; small pictures are enlarged."""
    height, width = rows[0][0].shape[:2]
    times = -(-_LEAST // height)
    step_x, step_y = width * times + _GAP, height * times + _GAP
    page = Image.new("RGB", (len(titles) * step_x, _LINE + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((column * step_x, 0), title, fill="black")
    for place, row in enumerate(rows):
        for column, value in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(value))
            large = image.resize((width * times, height * times), Image.Resampling.NEAREST)
            page.paste(large, (column * step_x, _LINE + place * step_y))
    return page
