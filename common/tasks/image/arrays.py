"""Images that come as arrays: .npz files and scikit-learn's handwritten digits.

Called by `sources.py`. Arrays are taken at the size they have: whoever made them has chosen it.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks.image import safe_files
from fednc.common.tasks.image.data import UNLABELLED, hold_out_index
from fednc.common.tasks.image.options import ImageOptions
from fednc.common.tasks.image.raw import Images, Purpose, map_labels

DIGITS_TEST_SHARE = 0.2
DIGITS_SEED = 0  # of the division into training and test: the same for every run

Array = np.ndarray[Any, np.dtype[Any]]


def read_digits(place: str, purpose: Purpose, options: ImageOptions) -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: a fixed stratified fifth is test, the rest training."""
    del place
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingExtraError("scikit-learn", "demo", "data `digits`") from e
    found = load_digits()
    train, test = hold_out_index(found.target, DIGITS_TEST_SHARE, DIGITS_SEED)
    index = train if purpose == "train" else test
    label_N = map_labels(found.target[index], [str(name) for name in found.target_names], options, "digits")
    pixel_N1HW = torch.from_numpy(found.images[index] / 16).float().unsqueeze(1)
    return Images(pixel_NCHW=pixel_N1HW, label_N=label_N)


def read_npz(place: str, purpose: Purpose, options: ImageOptions, *, labels_needed: bool = True) -> Images:
    """Arrays x_train, y_train, optionally x_test, y_test (else test is all) and classes (the names labels count).

    Raises:
        DataError: not such a file.
    """
    file = load_arrays(place)
    part = "test" if purpose == "test" and "x_test" in file else "train"
    pixel_NCHW = as_pixels(pick(file, f"x_{part}", place), f"npz:{place}: x_{part}")
    if not labels_needed and f"y_{part}" not in file:
        return Images(pixel_NCHW=pixel_NCHW, label_N=torch.full((len(pixel_NCHW),), UNLABELLED))
    found = [str(name) for name in file["classes"]] if "classes" in file else None
    label_N = map_labels(pick(file, f"y_{part}", place), found, options, f"npz:{place}: y_{part}")
    if len(label_N) != len(pixel_NCHW):
        raise DataError(f"npz:{place}: {len(pixel_NCHW)} images in x_{part}, {len(label_N)} labels in y_{part}")
    return Images(pixel_NCHW=pixel_NCHW, label_N=label_N)


def load_arrays(place: str) -> dict[str, Array]:
    """Every array of an .npz by name. Raises DataError: missing or not such a file."""
    try:
        return safe_files.read_npz(place)
    except FileNotFoundError as e:
        raise DataError(f"npz:{place}: no such file") from e
    except Exception as e:  # whatever the parser raises on bytes from anywhere means the same
        raise DataError(f"npz:{place}: not a readable .npz without pickled objects: {e}") from e


def pick(file: dict[str, Array], key: str, place: str) -> Array:
    """One array of a file. Raises DataError where it is not there."""
    if key not in file:
        raise DataError(f"npz:{place}: has no array {key!r}, only {', '.join(sorted(file)) or 'nothing'}")
    return file[key]


def as_pixels(values: Array, source: str) -> Tensor:
    """[N, C, H, W] from [N, H, W] or [N, H, W, C]."""
    if values.ndim not in (3, 4):
        raise DataError(f"{source} has shape {list(values.shape)}, expected [N, H, W] or [N, H, W, C]")
    if values.dtype != np.uint8:
        values = _unit_floats(values, source)
    values = values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(values))


def _unit_floats(values: Array, source: str) -> Array:
    if values.dtype.kind != "f":
        raise DataError(f"{source} is {values.dtype}, expected uint8 in 0..255 or floats in 0..1")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise DataError(f"{source} reaches from {low:g} to {high:g}; floats must lie in 0..1 (uint8 in 0..255)")
    return values.astype(np.float32)
