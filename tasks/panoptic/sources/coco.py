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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import INSTANCE, LABEL, NO_INSTANCE, PART, VOID
from fednc.tasks.dense.sources.pictures import Part, Pictures
from fednc.tasks.dense.sources.pixels import nearest
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.sources.files import base_of, opened, resized_picture, stack
from fednc.tasks.panoptic.sources.part_names import part_values

SEGMENTS, PART_NAMES = "panoptic.json", "parts.json"
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def read_coco(place: str, part: Part, options: PanopticOptions) -> Pictures:
    """The pictures of `place` that the JSON file lists. Raises DataError that names what is wrong where."""
    base, has_test = base_of(Path(place).expanduser(), part, SEGMENTS, f"coco:{place}")
    source = str(base / SEGMENTS)
    categories, annotations = _listed(base / SEGMENTS)
    classes = tuple(name for _, name in sorted(categories.items()))
    value = {number: classes.index(name) for number, name in categories.items()}
    names = _part_names(base / PART_NAMES, classes) if (base / "part").is_dir() else {}
    pixels, labels, instances, parts = [], [], [], []
    for entry in annotations:
        stem = Path(str(entry["file_name"])).stem
        picture = resized_picture(base / "image", stem, options.size)
        label_HW, instance_HW = _segments(
            base / "panoptic" / f"{stem}.png", entry, value, options, classes, source
        )
        pixels.append(picture)
        labels.append(label_HW)
        instances.append(instance_HW)
        if names:
            parts.append(nearest(opened(base / "part" / f"{stem}.png", "grey"), options.size))
    label_NHW = np.stack(labels).astype(np.uint8)
    maps = {LABEL: label_NHW, INSTANCE: np.stack(instances).astype(np.int16)}
    if parts:
        maps[PART] = part_values(label_NHW, np.stack(parts), classes, names, options, str(base / "part"))
    return Pictures(
        pixel_NCHW=stack(pixels),
        maps={kind: torch.from_numpy(found) for kind, found in maps.items()},
        value_names=classes,
        names=tuple(str(entry["file_name"]) for entry in annotations),
        has_test=has_test,
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
    categories, annotations = _listed(base / SEGMENTS)
    classes = [name for _, name in sorted(categories.items())]
    named = _part_names(base / PART_NAMES, tuple(classes)) if (base / "part").is_dir() else {}
    parts = {classes[value]: list(names) for value, names in sorted(named.items())}
    told = json.loads((base / SEGMENTS).read_text(encoding="utf-8"))["categories"]
    guessed = not any("isthing" in each for each in told)
    if guessed:
        marked = {categories[number] for number in _several(annotations) & set(categories)} | set(parts)
    else:
        marked = {str(each["name"]) for each in told if each.get("isthing")}
    things = [name for name in classes if name in marked]
    if not things:
        raise DataError(
            f"{base / SEGMENTS}: no category is a thing. Add `isthing`: 1 to the categories whose objects are "
            "told apart."
        )
    return Names(classes, things, parts, guessed)


def _several(annotations: Sequence[Mapping[str, Any]]) -> set[int]:
    """Categories with several segments in one picture."""
    found: set[int] = set()
    for entry in annotations:
        count = Counter(int(segment["category_id"]) for segment in entry["segments_info"])
        found |= {number for number, times in count.items() if times > 1}
    return found


def _listed(path: Path) -> tuple[dict[int, str], list[Mapping[str, Any]]]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        categories = {int(each["id"]): str(each["name"]) for each in given["categories"]}
        annotations = sorted(given["annotations"], key=lambda entry: str(entry["file_name"]))
        _ = [segment["id"] + segment["category_id"] for entry in annotations for segment in entry["segments_info"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: not a COCO panoptic file with categories and annotations ({type(e).__name__}: {e})"
        ) from e
    if len(set(categories.values())) < len(categories) or len(categories) > VOID:
        raise DataError(f"{path}: {len(categories)} categories; expected at most {VOID}, with different names")
    if not annotations:
        raise DataError(f"{path}: it lists no pictures")
    return categories, annotations


def _segments(
    path: Path,
    entry: Mapping[str, Any],
    value: Mapping[int, int],
    options: PanopticOptions,
    classes: tuple[str, ...],
    source: str,
) -> tuple[Numbers, Numbers]:
    colour_HW3 = nearest(opened(path, "colour"), options.size).astype(np.int64)
    id_HW = colour_HW3 @ np.array([1, 256, 256**2])
    label_HW, instance_HW = np.full(id_HW.shape, VOID), np.full(id_HW.shape, NO_INSTANCE)
    known = {0}
    for number, segment in enumerate(entry["segments_info"]):
        category, inside_HW = int(segment["category_id"]), id_HW == int(segment["id"])
        if category not in value:
            listed = ", ".join(map(str, sorted(value)[:20]))
            raise DataError(
                f"{source}: category_id {category} of segment {segment['id']} in {entry['file_name']} is "
                f"not one of its categories ({listed}). Add it there, or correct the segment."
            )
        known.add(int(segment["id"]))
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
