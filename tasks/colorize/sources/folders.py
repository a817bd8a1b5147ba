"""Reads folders of picture files: colours, and lines, regions and references of the same name beside them.

    PATH/{train,test}/colour/NAME.png     the coloured pictures; without `train` and `test`, PATH/colour/
    PATH/{train,test}/line/NAME.png       line art of the same size; without this folder, made from the colours
    PATH/{train,test}/region/NAME.png     grey or palette, the value is the region
    PATH/{train,test}/reference/NAME.png  the picture whose colours to use; by default another one of the folder
    PATH/classes.txt                      name of region value 0 in the first line, of 1 in the second, ...

Called by `select.py`.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.tasks.colorize.line_art import lines_of
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources.pairs import (
    Array,
    Pairs,
    listed,
    numbered_regions,
    refuse_grey,
    resized,
    resized_regions,
)
from fednc.tasks.dense.sources.folders import CLASSES, by_stem, open_picture, pictures_in, value_names_in
from fednc.tasks.dense.sources.pictures import several
from fednc.tasks.dense.sources.pixels import in_colour, in_grey

COLOUR, LINE, REGION, REFERENCE = "colour", "line", "region", "reference"
_LABEL_MODES = ("L", "P", "1", "I;16", "I")


def read_folder(place: str, purpose: Purpose, options: ColorizeOptions) -> Pairs:
    """The pictures below `place`. Raises DataError that names the unusable ones."""
    root, source = Path(place).expanduser(), f"folder:{place}"
    if not root.is_dir():
        raise DataError(f"{source}: no such folder")
    has_test = any((root / "test" / name).is_dir() for name in (COLOUR, LINE))
    base = root / ("train" if purpose == "train" or not has_test else "test")
    base = base if any((base / name).is_dir() for name in (COLOUR, LINE)) else root
    folders = {
        name: by_stem(pictures_in(base / name))
        for name in (COLOUR, LINE, REGION, REFERENCE)
        if (base / name).is_dir()
    }
    if COLOUR not in folders and not (purpose == "input" and LINE in folders and REFERENCE in folders):
        raise DataError(
            f"{source}: has no folder {COLOUR}/ or train/{COLOUR}/ with the coloured pictures (to predict, "
            f"{LINE}/ and {REFERENCE}/ are enough); docs/colorize.md shows the folders"
        )
    _refuse_missing(folders, source)
    stems = sorted(next(iter(folders.values())))
    found = _read(folders, stems, options.size, source)
    if COLOUR in found:
        refuse_grey(found[COLOUR], stems, source)
    if REFERENCE in found:
        refuse_grey(found[REFERENCE], [f"{REFERENCE}/{stem}" for stem in stems], source)
    value_names = value_names_in(root / CLASSES)
    region = found.get(REGION)
    if region is not None and options.classes:
        region = numbered_regions(region, value_names, options.classes, stems, source)
    made = () if LINE in found else (f"no folder {LINE}/: line art is made from the colours",)
    return Pairs(
        line_N1HW=found[LINE] if LINE in found else lines_of(found[COLOUR]),
        colour_N3HW=found.get(COLOUR),
        reference_N3HW=found.get(REFERENCE),
        region_NHW=region if options.classes else None,
        names=tuple(stems),
        has_test=has_test,
        notes=made,
    )


def _refuse_missing(folders: dict[str, dict[str, Path]], source: str) -> None:
    """Raises DataError: a picture without its partner of the same name in another folder."""
    every = sorted({stem for files in folders.values() for stem in files})
    for name, files in folders.items():
        missing = [stem for stem in every if stem not in files]
        if missing:
            raise DataError(
                f"{source}: folder {name}/ has no picture for {listed(missing)}. Partners have the same name in "
                f"{', '.join(f'{each}/' for each in folders)}; add the missing ones, or remove the others."
            )


def _read(
    folders: dict[str, dict[str, Path]], stems: Sequence[str], size: tuple[int, int], source: str
) -> dict[str, Tensor]:
    """uint8 by folder, at the run's size."""

    def one(stem: str) -> tuple[dict[str, Tensor], str]:
        try:
            return _one(folders, stem, size), ""
        except DataError as e:
            return {}, str(e)

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        done = list(pool.map(one, stems))
    bad = [problem for _, problem in done if problem]
    if bad:
        raise several(bad, len(stems), source)
    return {name: torch.cat([values[name] for values, _ in done]) for name in folders}


def _one(folders: dict[str, dict[str, Path]], stem: str, size: tuple[int, int]) -> dict[str, Tensor]:
    images = {name: open_picture(files[stem]) for name, files in folders.items()}
    first = next(name for name in (COLOUR, LINE) if name in images)
    for name in (LINE, REGION):
        if name in images and images[name].size != images[first].size:
            width, height = images[name].size
            raise DataError(
                f"{folders[name][stem]}: is {height}x{width}, but its partner in {first}/ is "
                f"{images[first].size[1]}x{images[first].size[0]} (height x width). A pair has one size."
            )
    found = {}
    for name, image in images.items():
        if name == REGION:
            values = _labels(image, folders[name][stem])
            found[name] = resized_regions(torch.from_numpy(values)[None], size)
        else:
            values = np.asarray((in_grey if name == LINE else in_colour)(image, folders[name][stem])).copy()
            values = values[None] if name == LINE else values.transpose(2, 0, 1)
            found[name] = resized(torch.from_numpy(np.ascontiguousarray(values))[None], size)
    return found


def _labels(image: Image.Image, path: Path) -> Array:
    if image.mode not in _LABEL_MODES:
        raise DataError(
            f"{path}: has colour mode {image.mode}, expected grey or palette, where the value is the region"
        )
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"{path}: a region value is outside 0 to 255")
    return values.astype(np.uint8)
