"""Reads images from arrays: .npz files and scikit-learn's handwritten digits.

Called by `select.py`. Arrays are not resized, since their author has chosen the size.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks import npz_files
from fednc.common.tasks.data_spec import DataSpec
from fednc.common.tasks.row_choice import chosen_rows, names_for, part_column
from fednc.common.tasks.tensor_data import UNLABELLED, hold_out_index
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources.folders import as_path
from fednc.tasks.vision.sources.images import Images, Purpose
from fednc.tasks.vision.sources.labels import map_labels, name_list, refuse_twins

DIGITS_TEST_SHARE = 0.2
READ = frozenset({"x_train", "y_train", "x_test", "y_test", "classes"})
DIGITS_SEED = 0  # for the division into training and test data: the same for every run

Array = np.ndarray[Any, np.dtype[Any]]


def read_digits(spec: DataSpec, purpose: Purpose, options: ImageOptions) -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a fixed stratified fifth of them is test data."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingExtraError("scikit-learn", "demo", "data `digits`") from e
    found = load_digits()
    train, test = hold_out_index(found.target, DIGITS_TEST_SHARE, DIGITS_SEED)
    index = train if purpose == "train" else test
    label_N = map_labels(found.target[index], [str(name) for name in found.target_names], options, spec.kind)
    pixel_N1HW = torch.from_numpy(found.images[index] / 16).float().unsqueeze(1)
    return Images(pixel_NCHW=pixel_N1HW, label_N=label_N, has_test=True)


def read_npz(spec: DataSpec, purpose: Purpose, options: ImageOptions, *, labels_needed: bool = True) -> Images:
    """Read arrays x_train, y_train, and optionally x_test, y_test and classes (the names of integer labels).

    With `columns=image=NAME,label=NAME` the arrays have these names instead, and there is no test part; with
    `only=COLUMN=VALUE` only rows that have this value in another array are read.

    Raises:
        DataError: the file does not have this form.
    """
    file = load_arrays(spec)
    has_test = not spec.columns and "x_test" in file
    part = "test" if purpose == "test" and has_test else "train"
    inputs, labels = array_names(spec, part)
    pixels = pick(file, inputs, spec.place)
    pixel_NCHW = as_pixels(pixels, f"{spec.source}: {inputs}")
    owner_N = _of_owner(spec, len(pixels), file, part)
    notes = _unused(file, spec)
    if not labels_needed and labels not in file:
        label_N = torch.full((len(pixel_NCHW),), UNLABELLED)
        return Images(pixel_NCHW=pixel_NCHW, label_N=label_N, has_test=has_test, notes=notes, owner_N=owner_N)
    names = class_names(file, spec)
    given = pick(file, labels, spec.place)
    refuse_other_lengths(len(pixels), len(given), part, spec)
    label_N = map_labels(given, names, options, f"{spec.source}: {labels}")
    return Images(
        pixel_NCHW=pixel_NCHW,
        label_N=label_N,
        has_test=has_test,
        notes=notes,
        owner_N=owner_N,
        label_names=tuple(names or ()),
    )


def _of_owner(spec: DataSpec, rows: int, file: dict[str, Array], part: str) -> Tensor | None:
    """bool [N]: the rows that `only` chooses; None if the spec has none."""
    if not spec.only:
        return None
    owner_N = torch.zeros(rows, dtype=torch.bool)
    owner_N[torch.from_numpy(chosen_rows(spec, rows, part_column(file, part, spec)))] = True
    return owner_N


def array_names(spec: DataSpec, part: str = "train") -> tuple[str, str]:
    """(name of the array of images, name of the array of labels) of a part."""
    return spec.columns.get("image", f"x_{part}"), spec.columns.get("label", f"y_{part}")


def class_names(file: dict[str, Array], spec: DataSpec) -> list[str] | None:
    """The names of integer labels: those given by the owner, else those in the file; None if there are none."""
    if spec.class_names:
        refuse_twins(spec.class_names, spec.source)
        return list(spec.class_names)
    return name_list(pick(file, "classes", spec.place), f"{spec.source}: classes") if "classes" in file else None


def refuse_other_lengths(images: int, labels: int, part: str, spec: DataSpec) -> None:
    """Raises DataError unless there is one label per image."""
    if images != labels:
        raise DataError(f"{spec.source}: {images} images in x_{part}, {labels} labels in y_{part}")


def load_arrays(spec: DataSpec) -> dict[str, Array]:
    """The arrays of an .npz by name; those that the spec does not use are empty.

    Raises:
        DataError: the file is missing or not an .npz file.
    """
    place = spec.place
    path = as_path(place)
    if not path.exists():
        raise DataError(f"npz:{place}: no such file")
    if not path.is_file():
        raise DataError(f"npz:{place}: is a folder or a device; give the .npz file itself")
    try:
        arrays = npz_files.read_npz(path, _read(spec))
    except PermissionError as e:
        raise DataError(f"npz:{place}: cannot be read (permission denied)") from e
    except Exception as e:  # any error of the parser means the same
        raise DataError(f"npz:{place}: not a readable .npz without pickled objects: {e}") from e
    for key, values in arrays.items():
        if not isinstance(values, np.ndarray):  # numpy returns a member that is not an array as bytes
            raise DataError(f"npz:{place}: {key!r} is not an array. Write the file with numpy.savez.")
    return arrays


def pick(file: dict[str, Array], key: str, place: str) -> Array:
    """One array of a file. Raises DataError if it is missing."""
    if key not in file:
        raise DataError(f"npz:{place}: has no array {key!r}, only {', '.join(sorted(file)) or 'nothing'}")
    return file[key]


def _read(spec: DataSpec) -> set[str]:
    """Names of the arrays that are used."""
    return {*READ, *spec.columns.values(), *names_for(spec)}


def _unused(file: Collection[str], spec: DataSpec) -> tuple[str, ...]:
    names = sorted(set(file) - _read(spec))
    return (f"left out: {len(names)} arrays with other names ({', '.join(names[:10])})",) if names else ()


def as_pixels(values: Array, source: str) -> Tensor:
    """[N, C, H, W] from [N, H, W] or [N, H, W, C]."""
    if values.ndim not in (3, 4):
        raise DataError(f"{source} has shape {list(values.shape)}, expected [N, H, W] or [N, H, W, C]")
    if values.ndim == 4 and values.shape[3] not in (1, 3):
        raise DataError(f"{source} has shape {list(values.shape)}: {_other_channels(values)}")
    if values.dtype != np.uint8:
        values = _unit_floats(values, source)
    values = values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(values))


def _other_channels(values: Array) -> str:
    if values.shape[1] in (1, 3):
        return "channels come second, expected last [N, H, W, C]. Store x.transpose(0, 2, 3, 1)."
    alpha = " A fourth one is often transparency: store x[..., :3]." if values.shape[3] == 4 else ""
    return f"{values.shape[3]} channels, expected 1 or 3 as the last axis [N, H, W, C].{alpha}"


def _unit_floats(values: Array, source: str) -> Array:
    if values.dtype.kind != "f":
        raise DataError(
            f"{source} is {values.dtype}, expected uint8 in 0..255 or floats in 0..1. "
            "Divide by the largest possible value of the camera or scanner, not by the largest in the data."
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise DataError(f"{source} has values from {low:g} to {high:g}; floats must be in 0..1 (uint8 in 0..255)")
    return values.astype(np.float32)
