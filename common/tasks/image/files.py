"""Images that come as files: folders with one subfolder per class, loose images, a single one.

Called by `sources.py` and, for its encoded images, by `hub.py`. Every image is turned upright, checked for colour
and resized to the run's size (bilinear with antialiasing, both sides alike); one that does not decode is named.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.image.data import UNLABELLED
from fednc.common.tasks.image.options import ImageOptions
from fednc.common.tasks.image.raw import Images, Purpose, map_names
from fednc.common.tasks.image.safe_files import open_image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 64_000_000  # a small file can declare an image that fills the memory
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})


def read_folder(place: str, purpose: Purpose, options: ImageOptions) -> Images:
    """One subfolder per class, in PATH/train and PATH/test where there are such, else in PATH itself.

    Raises:
        DataError: no such folder, unknown classes, an image that does not decode or fit.
    """
    root = Path(place)
    if not root.is_dir():
        raise DataError(f"folder:{place}: no such folder")
    part = root / purpose
    return _read_classes(part if part.is_dir() and purpose not in options.classes else root, options)


def read_any_folder(folder: Path, options: ImageOptions) -> Images:
    """A folder of classes (its test part), or of loose images without labels."""
    loose = images_in(folder)
    if loose:
        return read_files(loose, torch.full((len(loose),), UNLABELLED), options)
    return read_folder(str(folder), "test", options)


def read_files(paths: Sequence[Path], label_N: Tensor, options: ImageOptions) -> Images:
    """The images at `paths`. Raises DataError naming the first one that cannot be used."""
    with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter lock
        decoded = list(pool.map(lambda path: decode(path, str(path), options), paths))
    return Images(pixel_NCHW=stack(decoded), label_N=label_N, names=tuple(map(str, paths)))


def decode(file: Path | IO[bytes], name: str, options: ImageOptions) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [H, W, C] at the run's size. Raises DataError naming `name`."""
    try:
        with open_image(file) as image:
            _refuse_bomb(image.size, name)
            _refuse_other_colours(image.mode, name, options)
            upright = ImageOps.exif_transpose(image).convert("L" if options.channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as e:  # whatever a decoder raises on bytes from anywhere means the same
        raise DataError(f"{name}: not an image that can be decoded ({e}). Replace or remove it.") from e
    if upright.size != (options.size, options.size):
        upright = upright.resize((options.size, options.size), Image.Resampling.BILINEAR)
    return np.asarray(upright).reshape(options.size, options.size, options.channels)


def stack(decoded: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
    """uint8 [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2)))


def _read_classes(root: Path, options: ImageOptions) -> Images:
    folders = {path.name: images_in(path) for path in sorted(root.iterdir()) if path.is_dir()}
    used = sorted(name for name, images in folders.items() if images)
    if not used:
        raise DataError(
            f"folder:{root}: no images in subfolders ({len(folders)} subfolders). Expected one per class, with "
            f"{', '.join(sorted(SUFFIXES))} in it."
        )
    positions = map_names(used, options, f"folder:{root}")
    # In the run's order of classes, so that a copy of the folder on another machine gives the same examples.
    pairs = sorted((int(k), path) for k, name in zip(positions, used, strict=True) for path in folders[name])
    return read_files([path for _, path in pairs], torch.tensor([k for k, _ in pairs]), options)


def images_in(folder: Path) -> list[Path]:
    """The image files right in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _refuse_bomb(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{name}: {size[0]}x{size[1]} pixels, at most {MAX_PIXELS:,} are read. Make it smaller.")


def _refuse_other_colours(mode: str, name: str, options: ImageOptions) -> None:
    wanted, kind = (GREY_MODES, "grey") if options.channels == 1 else (COLOUR_MODES, "colour")
    if mode not in wanted:
        raise DataError(
            f"{name}: has colour mode {mode}, this run's images are {kind} (task.channels = {options.channels}; "
            f"modes {', '.join(sorted(wanted))}). Convert it."
        )
