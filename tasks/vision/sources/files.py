"""Reads image files: folders with one subfolder per class, loose images, or a single image.

Called by `select.py`, and by `hub.py` for encoded images; `folders.py` finds the files. Every image is turned
upright, checked for colour, laid on white if it is transparent, and resized to the run's size (bilinear with
antialiasing, aspect ratio not kept).
Errors name the images that cannot be decoded.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.data_spec import DataSpec
from fednc.common.tasks.tensor_data import UNLABELLED
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources.folders import LeftOut, class_folders, images_in, readable
from fednc.tasks.vision.sources.images import Images, Purpose, several
from fednc.tasks.vision.sources.labels import map_names
from fednc.tasks.vision.sources.transparency import on_white

MAX_PIXELS = 64_000_000  # a small file can declare an image that fills all memory
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})
# For `folders.SUFFIXES`. Other formats need programs: EPS would start Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def read_folder(spec: DataSpec, purpose: Purpose, options: ImageOptions) -> Images:
    """Read one subfolder per class, in PATH/train and PATH/test if they exist, else in PATH itself.

    Raises:
        DataError: the folder does not exist, classes are unknown, or images do not decode or fit.
    """
    found = class_folders(spec.place, purpose, options.classes)
    names = list(found.images)
    positions = map_names(names, options, spec.source)
    # In the run's order of classes, so that a copy of the folder on another machine gives the same order.
    pairs = sorted((int(k), path) for k, name in zip(positions, names, strict=True) for path in found.images[name])
    images = read_files([path for _, path in pairs], torch.tensor([k for k, _ in pairs]), options, spec.source)
    return replace(images, has_test=found.has_test, notes=found.notes)


def read_any_folder(spec: DataSpec, folder: Path, options: ImageOptions) -> Images:
    """Read a folder of classes (its test part), or of loose images without labels."""
    left = LeftOut()
    with readable(str(folder)):
        loose = images_in(folder, left)
    if loose:
        images = read_files(loose, torch.full((len(loose),), UNLABELLED), options, str(folder))
        return replace(images, notes=left.notes(folder))
    return read_folder(replace(spec, kind="folder", place=str(folder), has_colon=True), "test", options)


def read_files(paths: Sequence[Path], label_N: Tensor, options: ImageOptions, source: str) -> Images:
    """The images at `paths`. Raises DataError that names the unusable ones."""
    decoded = decode_all((partial(decode, path, str(path), options) for path in paths), source)
    return Images(pixel_NCHW=stack(decoded), label_N=label_N, names=tuple(map(str, paths)))


def decode_all(decoders: Iterable[Callable[[], Pixels]], source: str) -> list[Pixels]:
    """The result of each decoder. Raises DataError that names the unusable images, at most ten."""
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        found = list(pool.map(_or_error, decoders))
    bad = [each for each in found if isinstance(each, DataError)]
    if bad:
        raise several(bad, len(found), source)
    return [each for each in found if not isinstance(each, DataError)]


def _or_error(decoder: Callable[[], Pixels]) -> Pixels | DataError:
    try:
        return decoder()
    except DataError as e:
        return e


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """The image in `file`, whatever its suffix. Raises any exception of Pillow."""
    return Image.open(file, formats=FORMATS)


def decode(file: Path | IO[bytes], name: str, options: ImageOptions) -> Pixels:
    """uint8 [H, W, C] at the run's size. Raises DataError with `name`."""
    try:
        with open_image(file) as image:
            _refuse_bomb(image.size, name)
            refuse_frames(image, name)
            _refuse_other_colours(image.mode, name, options)
            upright = on_white(ImageOps.exif_transpose(image)).convert("L" if options.channels == 1 else "RGB")
    except DataError:
        raise
    except PermissionError as e:
        raise DataError(f"{name}: cannot be read (permission denied)") from e
    except Exception as e:  # any error of a decoder means the same
        raise DataError(f"{name}: not an image that can be decoded ({e}). Replace or remove it.") from e
    if upright.size != (options.size, options.size):
        upright = upright.resize((options.size, options.size), Image.Resampling.BILINEAR)
    return np.asarray(upright).reshape(options.size, options.size, options.channels)


def stack(decoded: Sequence[Pixels]) -> Tensor:
    """uint8 [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2)))


def _refuse_bomb(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{name}: {size[0]}x{size[1]} pixels, more than the limit of {MAX_PIXELS:,}. Make it smaller."
        )


def refuse_frames(image: Image.Image, name: str) -> None:
    """Raises DataError for an animation or several pages, since only the owner knows which image is meant.

    A camera's MPO file contains smaller copies of its first image, which is read.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{name}: contains {frames} images (an animation or pages). Save only the one to use.")


def _refuse_other_colours(mode: str, name: str, options: ImageOptions) -> None:
    wanted, kind = (GREY_MODES, "grey") if options.channels == 1 else (COLOUR_MODES, "colour")
    if mode not in wanted:
        raise DataError(
            f"{name}: has colour mode {mode}, but this run's images are {kind} (task.channels = "
            f"{options.channels}; modes {', '.join(sorted(wanted))}). Convert it."
        )
