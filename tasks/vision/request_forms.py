"""The forms in which a served image model takes images: as files, as pixels, or preprocessed.

Called by the image task for `fednc serve`. Files are decoded by the reader that clients use for their own data.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.request_forms import RequestForm, Values, preprocessed
from fednc.tasks.vision.dataset import as_unit_range
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources.files import decode, open_image, stack

MOST_PIXELS = 25_000_000  # of one image in a request: a camera's picture fits, and decoding it takes 100 MB


def image_forms(options: ImageOptions) -> tuple[RequestForm, ...]:
    """`image`: files; `pixels`: bytes [B, H, W, C] of the run's size; `input`: preprocessed [B, C, H, W]."""
    size, channels = options.size, options.channels
    return (
        RequestForm("image", "BYTES", (), partial(_decoded, options=options), is_file=True),
        RequestForm("pixels", "UINT8", (size, size, channels), partial(_from_pixels, options=options)),
        preprocessed((channels, size, size)),
    )


def _decoded(values: Values, options: ImageOptions) -> Tensor:
    images = []
    for place, content in enumerate(values):
        name = f"image {place}"
        _refuse_large(content, name)
        images.append(decode(io.BytesIO(content), name, options))
    return _normalised(stack(images), options)


def _refuse_large(content: bytes, name: str) -> None:
    """Raises DataError from the header alone, before any pixel is decoded."""
    try:
        with open_image(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception as e:  # any error of a decoder means the same
        raise DataError(f"{name}: not an image that can be decoded. Send a PNG or JPEG file.") from e
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} pixels, more than the limit of {MOST_PIXELS:,}. Make it smaller."
        )


def _from_pixels(values: Values, options: ImageOptions) -> Tensor:
    pixel_BCHW = torch.from_numpy(
        np.array(values.transpose(0, 3, 1, 2), order="C")
    )  # a copy: raw data is read-only
    return _normalised(pixel_BCHW, options)


def _normalised(pixel_BCHW: Tensor, options: ImageOptions) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(each)[:, None, None] for each in (options.mean, options.std))
    return (as_unit_range(pixel_BCHW) - mean_C11) / std_C11
