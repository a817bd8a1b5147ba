"""Suggests `[task]` keys that fit given data: class names, size, colour, mean and standard deviation.

`fednc init` calls it through the task, before there is a run file; later only the run file counts. Data that a
client would refuse is refused here too, except for images in folders, of which only the first bytes are read.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from fednc.common.config.run import explain
from fednc.common.errors import DataError
from fednc.common.tasks.api import Suggestion
from fednc.common.tasks.data_spec import DataSpec
from fednc.tasks.vision.dataset import as_unit_range
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources import arrays, files, select
from fednc.tasks.vision.sources.folders import class_folders
from fednc.tasks.vision.sources.images import several
from fednc.tasks.vision.sources.labels import as_column, as_text, comparable, quoted

LARGEST_GUESS = 64  # pixels; photographs are reduced to this size, the owner may choose a larger one
SAMPLE = 4096  # number of images for mean and standard deviation
MOST_CLASSES = 4096  # more distinct labels than this are probably measurements
ROUNDED = 4  # decimals of mean and std


def suggest(text: str) -> Suggestion:
    """Keys of `[task]` for the training images at `text`, a data spec.

    Raises:
        DataError: the data is missing, unreadable, or of a kind without class names.
    """
    spec = select.parse_data(text)
    readers = {"digits": _of_digits, "npz": _of_npz, "folder": _of_folder}
    if spec.kind not in readers:
        raise DataError(f"data {text!r}: class names can only be read from digits, npz:PATH or folder:PATH")
    found = readers[spec.kind](spec)
    return replace(found, notes=(*found.notes, *_twins_but_for_case(found.options["classes"])))


def _of_digits(spec: DataSpec) -> Suggestion:
    del spec
    names = [str(digit) for digit in range(10)]
    return Suggestion({"classes": names, "size": 8, "channels": 1, "mean": [0.305], "std": [0.376]})


def _of_npz(spec: DataSpec) -> Suggestion:
    file = arrays.load_arrays(spec)
    inputs, _ = arrays.array_names(spec)
    pixel_NCHW = arrays.as_pixels(arrays.pick(file, inputs, spec.place), f"{spec.source}: {inputs}")
    count, channels, height, width = pixel_NCHW.shape
    if count == 0:
        raise DataError(f"{spec.source}: no images in {inputs}")
    if height != width:
        raise DataError(
            f"{spec.source}: images are {height}x{width}, but must be square. Crop, pad or resize them."
        )
    names, notes = _npz_classes(file, spec)
    options = {"classes": names, "size": height, "channels": channels, **_moments(pixel_NCHW, spec)}
    try:
        checked = ImageOptions.model_validate(options)
    except ValidationError as e:
        raise DataError(explain(e, spec.source, prefix="task")) from e
    read = arrays.read_npz(spec, "train", checked)  # refuses data that a client would refuse
    empty = [
        name for name, n in zip(names, torch.bincount(read.label_N, minlength=len(names)), strict=True) if not n
    ]
    if empty:
        notes = (*notes, f"no examples for {len(empty)} of the classes: {quoted(empty)}")
    return Suggestion(options, (*read.notes, *notes), measured=True)


def _npz_classes(file: dict[str, arrays.Array], spec: DataSpec) -> tuple[list[str], tuple[str, ...]]:
    """(names of the classes, notes on them). Labels without names are used as names themselves."""
    _, labels = arrays.array_names(spec)
    source = f"{spec.source}: {labels}"
    used = np.unique(as_column(arrays.pick(file, labels, spec.place), source))
    named = arrays.class_names(file, spec)
    if named is not None and used.dtype.kind not in "US":
        return named, ()
    if len(used) > MOST_CLASSES:
        raise DataError(
            f"{source}: {len(used)} different labels. At most {MOST_CLASSES} classes are supported; are these "
            "labels measurements?"
        )
    if used.dtype.kind in "US":
        return [as_text(name, source) for name in used], ()
    if len(used) and used[0] < 0:
        raise DataError(f"{source}: label {used[0]} is below 0. Leave out images without a label.")
    return [str(label) for label in used], (
        "the labels have no names, so the classes have their numbers as names, and only labels that occur here "
        "are classes. Give names with --class-names a,b,c",
    )


def _moments(pixel_NCHW: torch.Tensor, spec: DataSpec) -> dict[str, list[float]]:
    sample_NCHW = as_unit_range(pixel_NCHW[:: max(1, len(pixel_NCHW) // SAMPLE)])
    mean_C = [round(value, ROUNDED) for value in sample_NCHW.mean(dim=(0, 2, 3)).tolist()]
    std_C = [round(value, ROUNDED) for value in sample_NCHW.std(dim=(0, 2, 3), correction=0).tolist()]
    if min(std_C) <= 0:
        raise DataError(
            f"{spec.source}: x_train has one value everywhere in a channel (mean {mean_C}, std {std_C}): there "
            "is nothing to learn from it. Check the images, or leave the channel out."
        )
    return {"mean": mean_C, "std": std_C}


def _of_folder(spec: DataSpec) -> Suggestion:
    found = class_folders(spec.place, "train")
    paths = [path for images in found.images.values() for path in images]
    with ThreadPoolExecutor() as pool:
        heads = list(pool.map(partial(_head, names=frozenset(files.GREY_MODES | files.COLOUR_MODES)), paths))
    bad = [head for head in heads if isinstance(head, DataError)]
    if bad:
        raise several(bad, len(paths), spec.source)
    fine = [head for head in heads if not isinstance(head, DataError)]
    grey = [path for path, (is_grey, _) in zip(paths, fine, strict=True) if is_grey]
    if 0 < len(grey) < len(paths):
        colour = next(path for path, (is_grey, _) in zip(paths, fine, strict=True) if not is_grey)
        raise DataError(
            f"{spec.source}: {len(grey)} images are grey (first: {grey[0]}) and {len(paths) - len(grey)} coloured "
            f"(first: {colour}). Convert them to one kind."
        )
    size = min(LARGEST_GUESS, fine[0][1])
    return Suggestion(
        {"classes": list(found.images), "size": size, "channels": 1 if grey else 3},
        (*found.notes, f"size {size} is that of the first image, but at most {LARGEST_GUESS}"),
    )


def _head(path: Path, names: frozenset[str]) -> tuple[bool, int] | DataError:
    """(whether it is grey, its smaller side in pixels)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file that claims too many pixels is refused when it is read
            with files.open_image(path) as image:
                files.refuse_frames(image, str(path))
                mode, size = image.mode, min(image.size)
    except DataError as e:
        return e
    except Exception as e:  # any error of a decoder means the same
        return DataError(f"{path}: not an image that can be decoded ({e}). Replace or remove it.")
    if mode not in names:
        return DataError(
            f"{path}: has colour mode {mode}, which is not supported. Convert it to 8 bits, grey or colour."
        )
    return mode in files.GREY_MODES, size


def _twins_but_for_case(names: list[str]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    twins = [(first.setdefault(comparable(name).strip().casefold(), name), name) for name in names]
    told = [f"{one!r} and {other!r}" for one, other in twins if one != other]
    return (
        (f"classes that differ only in case or spaces: {'; '.join(told[:10])}. Are they different?",)
        if told
        else ()
    )
