"""Reads generated characters: `characters:images=64,test=32,seed=1,artist=0/3`.

    images, test   number of training and of test pictures
    seed           of everything
    free           share of regions whose colour is any, not one that the artist prefers
    artist         `0/3`: the first of three artists, each with palette and style; `all/3`: the three in turn

Called by `select.py`.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.tasks.api import Purpose
from fednc.common.tasks.generated_spec import COUNT, MOST_SITES, SEED, Keys, between, parse_keys
from fednc.tasks.colorize.characters import REGIONS, draw_characters
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources.pairs import Pairs, numbered_regions


def _artist(text: str) -> tuple[int | None, int]:
    number, _, of = text.partition("/")
    who, count = None if number == "all" else int(number), int(of)
    if not (1 <= count <= MOST_SITES and (who is None or 0 <= who < count)):
        raise ValueError("expected 0/3 for the first of three artists, or all/3")
    return who, count


_KEYS: Keys = {
    "images": COUNT,
    "test": COUNT,
    "seed": SEED,
    "artist": _artist,
    "free": between(0, 1, float),
}
_DEFAULTS: dict[str, Any] = {"images": 64, "test": 32, "seed": 0, "artist": (0, 1), "free": 0.2}


def read_characters(place: str, purpose: Purpose, options: ColorizeOptions) -> Pairs:
    """Characters of the run's size. Raises DataError: an unknown key, or a value that is not allowed."""
    given = {**_DEFAULTS, **parse_keys("characters", place, _KEYS)}
    part = "train" if purpose == "train" else "test"
    who, of = given["artist"]
    count = given["images" if part == "train" else "test"]
    found, artists = draw_characters(options.size, who, of, given["free"], count, given["seed"], part)
    names = tuple(f"{part} character {index} of artist {artist}" for index, artist in enumerate(artists))
    region_NHW = _stacked([one.region for one in found])
    return Pairs(
        line_N1HW=_stacked([one.line for one in found])[:, None],
        colour_N3HW=_stacked([one.colour for one in found]).permute(0, 3, 1, 2).contiguous(),
        region_NHW=numbered_regions(region_NHW, REGIONS, options.classes, names, f"characters:{place}")
        if options.classes
        else None,
        names=names,
        artists=tuple(artists),
        has_test=True,
    )


def _stacked(values: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
    return torch.from_numpy(np.stack(values))
