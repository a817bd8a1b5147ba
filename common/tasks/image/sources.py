"""Data specs: `digits`, `npz:PATH`, `folder:PATH`, `hf:ID_OR_PATH`; and plain paths to predict on.

Called by the task. Chooses the reader and checks that what it read has the run's channels and size.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fednc.common.errors import DataError
from fednc.common.tasks.image import arrays, files, hub
from fednc.common.tasks.image.data import UNLABELLED
from fednc.common.tasks.image.options import ImageOptions
from fednc.common.tasks.image.raw import Images, Purpose

SPECS = "digits, npz:PATH, folder:PATH or hf:ID_OR_PATH"
READERS: dict[str, Callable[[str, Purpose, ImageOptions], Images]] = {
    "digits": arrays.read_digits,
    "npz": arrays.read_npz,
    "folder": files.read_folder,
    "hf": hub.read_hub,
}


def read(spec: str, purpose: Purpose, options: ImageOptions) -> Images:
    """The images at `spec` for training or test; all of them where the source has no such part.

    Raises:
        DataError: missing, unreadable, or not of this run's classes and shapes; the message names the spec.
        MissingExtraError: the source needs a package that is not installed.
    """
    kind, colon, place = spec.partition(":")
    reader = READERS.get(kind)
    if reader is None or bool(place) == (kind == "digits") or (colon and not place):
        raise DataError(f"data {spec!r}: expected {SPECS}")
    return _checked(reader(place, purpose, options), spec, options)


def read_input(spec: str, options: ImageOptions) -> Images:
    """Images to predict on: a data spec (its test part), or the path of an image, a folder or an .npz.

    Raises:
        DataError: as `read`.
    """
    path = Path(spec)
    if not path.exists():
        if spec.partition(":")[0] not in READERS:
            raise DataError(f"{spec}: no such file or folder, and no data spec ({SPECS})")
        return read(spec, "test", options)
    if path.is_dir():
        images = files.read_any_folder(path, options)
    elif path.suffix == ".npz":
        images = arrays.read_npz(str(path), "test", options, labels_needed=False)
        images = replace(images, names=tuple(f"{path}[{i}]" for i in range(len(images.label_N))))
    else:
        images = files.read_files([path], torch.tensor([UNLABELLED]), options)
    return _checked(images, spec, options)


def _checked(images: Images, source: str, options: ImageOptions) -> Images:
    count, channels, height, width = images.pixel_NCHW.shape
    if count == 0:
        raise DataError(f"{source}: no images in it")
    if channels != options.channels:
        raise DataError(
            f"{source}: images have {channels} channels, this run's have {options.channels} (task.channels). "
            "Convert the data: what grey means in colour is for its owner to say."
        )
    if (height, width) != (options.size, options.size):
        raise DataError(
            f"{source}: images are {height}x{width}, this run's are {options.size}x{options.size} (task.size). "
            "Resize the arrays, or give the images as a folder, which is resized."
        )
    return images
