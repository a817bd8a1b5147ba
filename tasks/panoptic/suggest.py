"""Suggests what a run file needs for given pictures with objects and parts: `[task]`, `[frame]` and `[train]`.

`fednc init` calls it through the task, before there is a run file; later only the run file counts.
"""

from __future__ import annotations

from typing import Any

from fednc.common.errors import DataError
from fednc.common.tasks.api import Suggestion
from fednc.tasks.dense.sources import select
from fednc.tasks.dense.suggest import moments, size_of_files
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.reading import OWN
from fednc.tasks.panoptic.sources import coco
from fednc.tasks.panoptic.streets import CLASSES, PARTS, THINGS

TRAIN = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 0.003,
    "weight_decay": 0.05,
    "clip_norm": 1.0,
    "batch": 8,
}
_SCALE = 10.0  # queries must be able to be sure that they found nothing: a smaller one leaves doubles
_LEAST_WIDTH = 32  # of the frame


def suggest(spec: str) -> Suggestion:
    """Tables of the run file for the training pictures at `spec`.

    Raises:
        DataError: the data is missing or unreadable, or does not name its classes and things.
    """
    kind, place, _ = select.parsed(spec, OWN)
    notes: tuple[str, ...] = ()
    if kind == "streets":
        names = coco.Names(
            list(CLASSES), list(THINGS), {whole: list(own) for whole, own in PARTS.items()}, guessed=False
        )
        size = (40, 40)
    elif kind == "coco":
        names = coco.names_in(place)
        size, notes = size_of_files(str(coco.base_in(place)))
    else:
        raise DataError(
            f"{spec}: does not say which classes are things. Write [task] by hand: docs/panoptic.md begins with "
            "an example"
        )
    if names.guessed:
        notes += (f"things are guessed, because no category says `isthing`: {', '.join(names.things)}",)
    task = {"classes": names.classes, "things": names.things, "parts": names.parts, "size": list(size)}
    found = OWN[kind](place, "train", PanopticOptions.model_validate(task))
    columns = len(names.classes) + sum(map(len, names.parts.values())) + 1
    tables: dict[str, dict[str, Any]] = {
        "frame": {"dim": max(_LEAST_WIDTH, 1 << (columns - 2).bit_length())},
        "method": {"scale": _SCALE},
        "train": TRAIN,
    }
    return Suggestion({**task, **moments(found, spec)}, notes, measured=True, tables=tables)
