"""Generated streets as folders in the forms of COCO panoptic and of panoptic parts, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fednc.tasks.panoptic.sources.part_ids import encoded
from fednc.tasks.panoptic.streets import CLASSES, PARTS, Street, StreetSettings, draw_streets

SIZE = (24, 32)


def streets(count: int = 3) -> list[Street]:
    return draw_streets(StreetSettings(size=SIZE), count, 7, "train")


def coco_folder(root: Path, given: list[Street], *, parts: bool = True) -> Path:
    """The streets as a COCO folder whose categories and parts are in another order than the run's."""
    order, base = (4, 2, 0, 3, 1), root / "train"
    for folder in ("image", "panoptic", "part"):
        (base / folder).mkdir(parents=True)
    annotations = []
    for number, street in enumerate(given):
        Image.fromarray(street.pixel).save(base / "image" / f"{number}.png")
        code = street.label.astype(np.int64) * 300 + street.instance + 2
        colour = np.stack([code % 256, code // 256, np.zeros_like(code)], axis=-1)
        Image.fromarray(colour.astype(np.uint8)).save(base / "panoptic" / f"{number}.png")
        segments = [
            {"id": int(each), "category_id": 10 + order.index(int(each) // 300), "iscrowd": 0}
            for each in np.unique(code)
        ]
        annotations.append({"file_name": f"{number}.png", "segments_info": segments})
        if parts:
            turned = np.where(street.part > 0, 4 - street.part, 0)  # the list of names below is turned, too
            Image.fromarray(turned.astype(np.uint8)).save(base / "part" / f"{number}.png")
    categories = [{"id": 10 + place, "name": CLASSES[value]} for place, value in enumerate(order)]
    (base / "panoptic.json").write_text(json.dumps({"categories": categories, "annotations": annotations}))
    if parts:
        (base / "parts.json").write_text(json.dumps({whole: list(reversed(own)) for whole, own in PARTS.items()}))
    else:
        (base / "part").rmdir()
    return root


def ids_folder(root: Path, given: list[Street], names: dict[str, Any] | None = None) -> Path:
    base = root / "train"
    for folder in ("image", "ids"):
        (base / folder).mkdir(parents=True)
    for number, street in enumerate(given):
        Image.fromarray(street.pixel).save(base / "image" / f"{number}.png")
        is_object = street.instance >= 0
        part = np.where(is_object & (street.part > 0), street.part.astype(np.int64), -1)
        code = encoded(street.label.astype(np.int64) + 20, np.where(is_object, street.instance, -1), part)
        Image.fromarray(code.astype(np.int32)).save(base / "ids" / f"{number}.tif")
    own = {
        "classes": {str(20 + value): name for value, name in enumerate(CLASSES)},
        "parts": {str(20 + CLASSES.index(w)): {str(i + 1): p for i, p in enumerate(o)} for w, o in PARTS.items()},
    }
    (base / "ids.json").write_text(json.dumps({**own, **(names or {})}))
    return root
