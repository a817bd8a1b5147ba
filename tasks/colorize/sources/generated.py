"""Reads generated characters: `characters:images=64,test=32,seed=1,artist=0/3`.

    images, test   number of training and of test pictures
    seed           of everything
    free           share of regions whose colour is any, not one that the artist prefers
    artist         `0/3`: the first of three artists, each with palette and style; `all/3`: the three in turn

Called by `select.py`.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.tasks.colorize.characters import REGIONS, draw_characters
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources.pairs import Pairs, numbered_regions

MOST_PICTURES, MOST_ARTISTS = 100_000, 1000


def _artist(text: str) -> tuple[int | None, int]:
    number, _, of = text.partition("/")
    who, count = None if number == "all" else int(number), int(of)
    if not (1 <= count <= MOST_ARTISTS and (who is None or 0 <= who < count)):
        raise ValueError("expected 0/3 for the first of three artists, or all/3")
    return who, count


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("must be 0 to 1")
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high}")
        return value

    return parsed


_KEYS: dict[str, Callable[[str], Any]] = {
    "images": _whole(1, MOST_PICTURES),
    "test": _whole(1, MOST_PICTURES),
    "seed": _whole(0, 2**62),
    "artist": _artist,
    "free": _share,
}
_DEFAULTS: dict[str, Any] = {"images": 64, "test": 32, "seed": 0, "artist": (0, 1), "free": 0.2}


def read_characters(place: str, purpose: Purpose, options: ColorizeOptions) -> Pairs:
    """Characters of the run's size. Raises DataError: an unknown key, or a value that is not allowed."""
    given = {**_DEFAULTS, **_parsed(place)}
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


def _parsed(place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in filter(None, place.split(",")):
        key, equals, text = item.partition("=")
        if key not in _KEYS or not equals or key in found:
            raise DataError(
                f"characters:{place}: {item!r} is not KEY=VALUE with a key of {', '.join(_KEYS)}, each once"
            )
        try:
            found[key] = _KEYS[key](text)
        except ValueError as e:
            raise DataError(f"characters:{place}: {key} = {text!r} cannot be used ({e})") from e
    return found
