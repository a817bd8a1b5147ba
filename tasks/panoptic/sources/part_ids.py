"""Reads folders with one number per pixel for class, instance and part, as Cityscapes and Pascal panoptic parts
have.

    PATH/{train,test}/image/NAME.png    the pictures; without `train` and `test`, PATH/image/
    PATH/{train,test}/ids/NAME.tif      32 bits: class, class and instance (3 digits), or those and the part (2)
    PATH/{train,test}/ids.json          {"classes": {"26": "car", ...}, "parts": {"26": {"1": "window", ...}}}

Called by `reading.py`. Without `ids.json` the numbers have their meaning of Cityscapes. The encoding is that of
panoptic_parts (Meletis et al. 2020), which its file calls uids.

Legend: H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import INSTANCE, LABEL, NO_INSTANCE, PART, VOID
from fednc.tasks.dense.sources.folders import IMAGE, left_out
from fednc.tasks.dense.sources.pictures import Part, Pictures
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.sources.files import (
    Size,
    base_of,
    file_of,
    files_in,
    labels_of,
    picture_of,
    stack,
)
from fednc.tasks.panoptic.sources.part_names import part_values

IDS, NAMES = "ids", "ids.json"
ENDINGS = frozenset({".tif", ".tiff", ".png"})
NONE = -1
Numbers = np.ndarray[Any, np.dtype[np.int64]]

_BODY = {1: "torso", 2: "head", 3: "arms", 4: "legs"}
_VEHICLE = {1: "windows", 2: "wheels", 3: "lights", 4: "license plate", 5: "chassis"}
CITYSCAPES = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
VOID_NUMBERS = (frozenset({0}), frozenset(range(34)))  # without a name: of a folder's own list, of Cityscapes
CITYSCAPES_PARTS = {24: _BODY, 25: _BODY, 26: _VEHICLE, 27: _VEHICLE, 28: _VEHICLE}


def decoded(number_HW: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """(class, instance, part) of each number; NONE where it says nothing of instance or part.

    Raises:
        ValueError: a number is negative, has three digits, or is above 99 999 99.
    """
    strange = (number_HW < 0) | ((number_HW >= 100) & (number_HW < 1000)) | (number_HW > 99_999_99)
    if strange.any():
        raise ValueError(f"{int(number_HW[strange][0])} is no class with or without instance and part")
    has_part, has_instance = number_HW > 99_999, number_HW > 99
    pair_HW = np.where(has_part, number_HW // 100, number_HW)
    class_HW = np.where(has_instance, pair_HW // 1000, pair_HW)
    instance_HW = np.where(has_instance, pair_HW % 1000, NONE)
    return class_HW, instance_HW, np.where(has_part, number_HW % 100, NONE)


def encoded(class_HW: Numbers, instance_HW: Numbers, part_HW: Numbers) -> Numbers:
    """The numbers that `decoded` reads; a part needs an instance."""
    pair_HW = np.where(instance_HW >= 0, class_HW * 1000 + instance_HW, class_HW)
    found: Numbers = np.where(part_HW >= 0, pair_HW * 100 + part_HW, pair_HW)
    return found


def read_part_ids(place: str, part: Part, options: PanopticOptions) -> Pictures:
    """The pictures of `place`. Raises DataError that names what is wrong where."""
    base, has_test = base_of(Path(place).expanduser(), part, IDS, f"partids:{place}")
    classes, parts = _names(base / NAMES)
    named = {list(classes).index(number): _in_order(own) for number, own in parts.items()}
    ids, images = files_in(base / IDS, ENDINGS), files_in(base / IMAGE)
    pixels: list[np.ndarray[Any, Any]] = []
    maps: dict[str, list[np.ndarray[Any, Any]]] = {LABEL: [], INSTANCE: [], PART: []}
    for stem, path in ids.items():
        pixel_HW3, given = picture_of(file_of(images, stem, base / IMAGE), options.size)
        label_HW, instance_HW, part_HW = _labels(path, classes, options, given)
        pixels.append(pixel_HW3)
        maps[LABEL].append(label_HW)
        maps[INSTANCE].append(instance_HW)
        maps[PART].append(part_values(label_HW, part_HW, tuple(classes.values()), named, options, str(path)))
    return Pictures(
        pixel_NCHW=stack(pixels),
        maps={kind: torch.from_numpy(np.stack(found)) for kind, found in maps.items()},
        value_names=tuple(classes.values()),
        names=tuple(path.name for path in ids.values()),
        sites=tuple(stem.partition("_")[0] for stem in ids) if all("_" in stem for stem in ids) else (),
        has_test=has_test,
        notes=left_out(images, ids, f"no file of that name in {IDS}/"),
    )


def _labels(
    path: Path, classes: Mapping[int, str], options: PanopticOptions, given: Size
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(label by place in `classes`, instance, part; 0: no part label)."""
    try:
        class_HW, instance_HW, part_HW = decoded(labels_of(path, "numbers", given, options.size).astype(np.int64))
    except ValueError as e:
        raise DataError(f"{path}: {e}") from e
    unlisted = sorted(set(np.unique(class_HW).tolist()) - set(classes) - VOID_NUMBERS[classes is CITYSCAPES])
    if unlisted:
        raise DataError(
            f"{path}: class {unlisted[0]} has no name. Name it in {NAMES}, or set its pixels to 0 (void)."
        )
    things = [number for number, name in classes.items() if name in options.things]
    table = np.full(100, VOID, np.uint8)
    for place, number in enumerate(classes):
        table[number] = place
    is_object_HW = np.isin(class_HW, things) & (instance_HW >= 0)
    return (
        table[class_HW],
        np.where(is_object_HW, instance_HW, NO_INSTANCE).astype(np.int16),
        np.where(part_HW > 0, part_HW, 0).astype(np.uint8),
    )


def _names(path: Path) -> tuple[dict[int, str], dict[int, dict[int, str]]]:
    if not path.is_file():
        return CITYSCAPES, CITYSCAPES_PARTS
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        classes = {int(number): str(name) for number, name in given["classes"].items()}
        parts = {
            int(whole): {int(number): str(name) for number, name in own.items()}
            for whole, own in given.get("parts", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path}: expected names by number under `classes` and `parts` ({type(e).__name__}: {e})"
        ) from e
    bad = [
        number
        for number in (*classes, *parts, *(n for own in parts.values() for n in own))
        if not 0 <= number <= 99
    ]
    if bad or not set(parts) <= set(classes):
        raise DataError(
            f"{path}: numbers of classes and parts are 0 to 99, and parts belong to one of the classes"
        )
    return classes, parts


def _in_order(own: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the parts from 1 on; empty where there is none."""
    return tuple(own.get(number, "") for number in range(1, max(own, default=0) + 1))
