"""Keys of `[task]` that fit some data, for `fednc init`. Called by the task."""

from __future__ import annotations

from typing import Any

from fednc.common.errors import DataError
from fednc.common.tasks.api import Suggestion
from fednc.tasks.colorize.characters import REGIONS
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources import select

_SIZES = (64, 128, 256)
_WIDTHS = {64: (8, 16, 32, 64), 128: (8, 16, 32, 64, 96), 256: (16, 32, 64, 128, 256)}


def suggested(spec: str) -> Suggestion:
    """Size and widths for the pictures at `spec`, and tables for two optimisers. Raises DataError."""
    is_generated = spec.partition(":")[0] == "characters"
    found = select.read(spec, "train", ColorizeOptions(), 0.0)
    if not found.names:
        raise DataError(f"{spec}: no pictures in it")
    side = _SIZES[0]
    options: dict[str, Any] = {"size": [side, side], "widths": list(_WIDTHS[side])}
    if is_generated:
        options["classes"] = list(REGIONS)
    return Suggestion(
        options=options,
        notes=(f"{len(found.names)} pictures; they are resized to {side}x{side}. Larger ones need larger widths",),
        tables={
            "method": {"name": "fedavg"},
            "train": {
                "optimizer": "adam",
                "optimizer_options": {"betas": [0.5, 0.999]},
                "lr": 0.0005,
                "batch": 8,
                "weight_decay": 0.0,
            },
        },
    )
