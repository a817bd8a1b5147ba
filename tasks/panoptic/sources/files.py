"""Opens picture files with objects and parts, with errors that name them. Used by the readers of this folder.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.tasks.dense.sources.folders import IMAGE, SUFFIXES, by_stem, open_picture
from fednc.tasks.dense.sources.pictures import Part
from fednc.tasks.dense.sources.pixels import in_colour, nearest, resized_picture

Numbers = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int]  # height, width
PNG = frozenset({".png"})
_MODES = {"grey": ("L", "P", "1"), "colour": ("RGB",), "numbers": ("I", "I;16", "L")}


def base_of(root: Path, part: Part, marker: str, source: str) -> tuple[Path, bool]:
    """(folder of this part of the data, whether there is a test part). Raises DataError without `marker` in it."""
    has_test = (root / "test" / marker).exists()
    base = root / (part if has_test or part == "train" else "train")
    base = base if (base / marker).exists() else root
    if not (base / marker).exists():
        raise DataError(f"{source}: has neither {marker} nor train/{marker} (docs/panoptic.md)")
    if not (base / IMAGE).is_dir():
        raise DataError(f"{base}: has no folder {IMAGE}/ with the pictures")
    return base, has_test


def files_in(folder: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, Path]:
    """The files with these endings, in capitals too, by their names without them.

    Raises DataError: no such folder, no such files, or two of one name.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = by_stem([path for path in paths if path.suffix.lower() in suffixes])
    if not found:
        raise DataError(f"{folder}: has no files that end in {', '.join(sorted(suffixes))}")
    return found


def file_of(files: Mapping[str, Path], stem: str, folder: Path) -> Path:
    """The file of that name. Raises DataError: there is none."""
    if stem not in files:
        raise DataError(f"{folder}: has no file {stem}; every picture needs one of its name here")
    return files[stem]


def picture_of(path: Path, size: Size) -> tuple[Numbers, Size]:
    """(uint8 [H, W, 3] at `size`, the size in the file). Raises DataError."""
    with open_picture(path) as image:
        return resized_picture(in_colour(image, path), size), (image.height, image.width)


def labels_of(path: Path, kind: Literal["grey", "colour", "numbers"], given: Size, size: Size) -> Numbers:
    """The values of a file at `size`, without mixing them.

    Args:
        given: the size of its picture in the file.

    Raises:
        DataError: unreadable, of another kind, or of another size than its picture.
    """
    with open_picture(path) as image:
        if image.mode not in _MODES[kind]:
            raise DataError(f"{path}: has colour mode {image.mode}, expected {' or '.join(_MODES[kind])}")
        if (image.height, image.width) != given:
            raise DataError(
                f"{path}: is {image.height}x{image.width}, but its picture is {given[0]}x{given[1]} (height x "
                "width). Make it again in the picture's size."
            )
        return nearest(np.asarray(image), size)


def stack(pixel_HW3: Sequence[Numbers]) -> Tensor:
    """uint8 [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixel_HW3).transpose(0, 3, 1, 2)))
