"""Opens picture files with objects and parts, with errors that name them. Used by the readers of this folder.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fednc.common.errors import DataError
from fednc.tasks.dense.sources.folders import IMAGE, SUFFIXES, open_picture
from fednc.tasks.dense.sources.pictures import Part
from fednc.tasks.dense.sources.pixels import in_colour

Numbers = np.ndarray[Any, np.dtype[Any]]
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


def opened(path: Path, kind: Literal["grey", "colour", "numbers"]) -> Numbers:
    """The values of a file. Raises DataError: missing, unreadable, or of another kind."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; every picture needs one of its name")
    with open_picture(path) as image:
        if image.mode not in _MODES[kind]:
            raise DataError(f"{path}: has colour mode {image.mode}, expected {' or '.join(_MODES[kind])}")
        return np.asarray(image)


def resized_picture(folder: Path, stem: str, size: tuple[int, int]) -> Numbers:
    """uint8 [H, W, 3] of the picture of that name, whatever its ending."""
    paths = [path for path in (folder / f"{stem}{suffix}" for suffix in sorted(SUFFIXES)) if path.is_file()]
    if not paths:
        raise DataError(f"{folder}: has no picture {stem} ({', '.join(sorted(SUFFIXES))})")
    with open_picture(paths[0]) as image:
        colour = in_colour(image, paths[0])
        return np.asarray(
            colour if colour.size == size[::-1] else colour.resize(size[::-1], Image.Resampling.BILINEAR)
        )


def stack(pixel_HW3: Sequence[Numbers]) -> Tensor:
    """uint8 [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixel_HW3).transpose(0, 3, 1, 2)))
