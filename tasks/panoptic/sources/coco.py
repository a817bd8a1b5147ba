"""Reads folders in the form of COCO panoptic: pictures, PNG files of segment ids, and a JSON file of segments.

    PATH/{train,test}/image/NAME.jpg       the pictures; without `train` and `test`, PATH/image/
    PATH/{train,test}/panoptic/NAME.png    colour; id = R + 256 G + 256^2 B, 0 is void
    PATH/{train,test}/panoptic.json        `categories` (id, name), `annotations` (file_name, segments_info)
    PATH/{train,test}/part/NAME.png        grey, if there are part labels; 0 is not labelled
    PATH/{train,test}/parts.json           {"class": ["name of part 1", "name of part 2", ...]}

Called by `reading.py`. Segments with `iscrowd` are things without instance. Files are resized to the run's size.

Legend: H height, W width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import INSTANCE, LABEL, MOST_INSTANCE, NO_INSTANCE, PART, VOID
from fednc.tasks.dense.sources.folders import IMAGE, left_out
from fednc.tasks.dense.sources.pictures import Part, Pictures
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.sources.files import (
    PNG,
    base_of,
    file_of,
    files_in,
    labels_of,
    picture_of,
    stack,
)
from fednc.tasks.panoptic.sources.part_names import part_values

SEGMENTS, PART_NAMES = "panoptic.json", "parts.json"
SEGMENT_FILES = "panoptic"  # the folder
MOST_ID = 256**3 - 1
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Entry = Mapping[str, Any]  # of a picture, in the JSON file


def read_coco(place: str, part: Part, options: PanopticOptions) -> Pictures:
    """The pictures of `place` that the JSON file lists. Raises DataError that names what is wrong where."""
    base, has_test = base_of(Path(place).expanduser(), part, SEGMENTS, f"coco:{place}")
    source = str(base / SEGMENTS)
    categories, entries = _listed(base / SEGMENTS)
    classes = tuple(name for _, name in sorted(categories.items()))
    value = {number: classes.index(name) for number, name in categories.items()}
    has_parts = (base / PART).is_dir()
    names = _part_names(base / PART_NAMES, classes) if has_parts else {}
    images, segments = files_in(base / IMAGE), files_in(base / SEGMENT_FILES, PNG)
    parts = files_in(base / PART, PNG) if has_parts else {}
    pixels: list[np.ndarray[Any, Any]] = []
    maps: dict[str, list[np.ndarray[Any, Any]]] = {LABEL: [], INSTANCE: [], **({PART: []} if has_parts else {})}
    for stem, entry in entries.items():
        pixel_HW3, given = picture_of(file_of(images, stem, base / IMAGE), options.size)
        path = file_of(segments, stem, base / SEGMENT_FILES)
        colour_HW3 = labels_of(path, "colour", given, options.size)
        label_HW, instance_HW = _segments(colour_HW3, path, entry, value, options, classes, source)
        pixels.append(pixel_HW3)
        maps[LABEL].append(label_HW.astype(np.uint8))
        maps[INSTANCE].append(instance_HW.astype(np.int16))
        if has_parts:
            path = file_of(parts, stem, base / PART)
            part_HW = labels_of(path, "grey", given, options.size)
            maps[PART].append(part_values(label_HW, part_HW, classes, names, options, str(path)))
    every = [images, segments, *([parts] if has_parts else [])]
    return Pictures(
        pixel_NCHW=stack(pixels),
        maps={kind: torch.from_numpy(np.stack(found)) for kind, found in maps.items()},
        value_names=classes,
        names=tuple(str(entry["file_name"]) for entry in entries.values()),
        has_test=has_test,
        notes=tuple(note for files in every for note in left_out(files, entries, f"not in {SEGMENTS}")),
    )


@dataclass(frozen=True)
class Names:
    """What the JSON files of a folder name.

    Attributes:
        parts: names of the parts by class, from value 1 on.
        guessed: whether the things were guessed, because no category says `isthing`.
    """

    classes: list[str]
    things: list[str]
    parts: dict[str, list[str]]
    guessed: bool


def base_in(place: str) -> Path:
    """The folder with the training pictures. Raises DataError."""
    return base_of(Path(place).expanduser(), "train", SEGMENTS, f"coco:{place}")[0]


def names_in(place: str) -> Names:
    """The names of `place`, for a suggestion.

    Without `isthing`, things are the categories with several segments in one picture and those with parts.

    Raises:
        DataError: the files are missing or wrong, or no category is a thing.
    """
    base = base_in(place)
    categories, entries = _listed(base / SEGMENTS)
    classes = [name for _, name in sorted(categories.items())]
    named = _part_names(base / PART_NAMES, tuple(classes)) if (base / PART).is_dir() else {}
    parts = {classes[value]: list(names) for value, names in sorted(named.items())}
    told = json.loads((base / SEGMENTS).read_text(encoding="utf-8"))["categories"]
    guessed = not any("isthing" in each for each in told)
    if guessed:
        marked = {categories[number] for number in _several(entries.values()) & set(categories)} | set(parts)
    else:
        marked = {str(each["name"]) for each in told if each.get("isthing")}
    things = [name for name in classes if name in marked]
    if not things:
        raise DataError(
            f"{base / SEGMENTS}: no category is a thing. Add `isthing`: 1 to the categories whose objects are "
            "told apart."
        )
    return Names(classes, things, parts, guessed)


def _several(entries: Iterable[Entry]) -> set[int]:
    """Categories with several segments in one picture."""
    found: set[int] = set()
    for entry in entries:
        count = Counter(segment["category_id"] for segment in entry["segments_info"])
        found |= {number for number, times in count.items() if times > 1}
    return found


def _listed(path: Path) -> tuple[dict[int, str], dict[str, Entry]]:
    """(names of the categories by number, entries of the pictures by their names without endings)."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        categories = {_whole(each["id"]): str(each["name"]) for each in given["categories"]}
        entries = sorted(given["annotations"], key=lambda entry: str(entry["file_name"]))
        for entry in entries:
            for segment in entry["segments_info"]:
                _whole(segment["id"], 1, MOST_ID), _whole(segment["category_id"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: not a COCO panoptic file with categories and annotations ({type(e).__name__}: {e})"
        ) from e
    numbers, names = len(given["categories"]), len(set(categories.values()))
    if not numbers == len(categories) == names or numbers > VOID:
        raise DataError(f"{path}: {numbers} categories; expected at most {VOID}, with different ids and names")
    if not entries:
        raise DataError(f"{path}: it lists no pictures")
    return categories, _by_stem(entries, path)


def _whole(value: object, least: int = 0, most: int | None = None) -> int:
    """`value`. Raises ValueError: it is no whole number of that range."""
    if type(value) is not int or value < least or (most is not None and value > most):
        limit = "" if most is None else f" to {most}"
        raise ValueError(f"{value!r} is not a whole number from {least}{limit}")
    return value


def _by_stem(entries: Iterable[Entry], path: Path) -> dict[str, Entry]:
    """Raises DataError: two entries whose files are the same, or a segment that is listed twice."""
    found: dict[str, Entry] = {}
    for entry in entries:
        name = str(entry["file_name"])
        stem = Path(name).stem
        if stem in found:
            raise DataError(
                f"{path}: {found[stem]['file_name']} and {name} are both read from the files named {stem}. List "
                "each picture once, and give different pictures different names."
            )
        count = Counter(segment["id"] for segment in entry["segments_info"])
        twice = [number for number, times in count.items() if times > 1]
        if twice:
            raise DataError(f"{path}: segment {twice[0]} of {name} is listed more than once; which one counts?")
        if len(count) > MOST_INSTANCE:
            raise DataError(f"{path}: {name} has {len(count)} segments, at most {MOST_INSTANCE} can be told apart")
        found[stem] = entry
    return found


def _segments(
    colour_HW3: Numbers,
    path: Path,
    entry: Entry,
    value: Mapping[int, int],
    options: PanopticOptions,
    classes: tuple[str, ...],
    source: str,
) -> tuple[Numbers, Numbers]:
    """(label by place in `classes`, instance), each [H, W]."""
    id_HW = colour_HW3.astype(np.int64) @ np.array([1, 256, 256**2])
    label_HW, instance_HW = np.full(id_HW.shape, VOID), np.full(id_HW.shape, NO_INSTANCE)
    known = {0}
    for number, segment in enumerate(entry["segments_info"]):
        category, inside_HW = segment["category_id"], id_HW == segment["id"]
        if category not in value:
            listed = ", ".join(map(str, sorted(value)[:20]))
            raise DataError(
                f"{source}: category_id {category} of segment {segment['id']} in {entry['file_name']} is "
                f"not one of its categories ({listed}). Add it there, or correct the segment."
            )
        known.add(segment["id"])
        label_HW[inside_HW] = value[category]
        if classes[value[category]] in options.things and not segment.get("iscrowd", 0):
            instance_HW[inside_HW] = number
    unlisted = sorted(set(np.unique(id_HW).tolist()) - known)
    if unlisted:
        raise DataError(
            f"{path}: segment id {unlisted[0]} is not in the segments_info of {entry['file_name']} in "
            f"{source}. Add it there, or set its pixels to 0 (void)."
        )
    return label_HW, instance_HW


def _part_names(path: Path, classes: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        found = {str(whole): tuple(map(str, names)) for whole, names in given.items()}
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise DataError(
            f"{path}: expected the names of the parts of each class, {{'car': ['body', 'wheel']}}, beside "
            f"the folder part/ ({type(e).__name__}: {e})"
        ) from e
    strange = [whole for whole in found if whole not in classes]
    if strange:
        raise DataError(f"{path}: {strange[0]!r} is not one of the categories ({', '.join(classes[:20])})")
    return {classes.index(whole): names for whole, names in found.items()}
