"""The result of every reader: lines, colours, references and regions, checked and brought to the run's size.

Used by the readers and by `select.py`. Must not know where pictures come from.

Legend: N pictures, C channels, H height, W width, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.splits import Index
from fednc.tasks.dense.sources.pixels import nearest_pixels

Array = np.ndarray[Any, np.dtype[Any]]
NO_REGION = 255
LISTED = 5  # pictures named in one error
_GREY = 2  # channels that differ by at most so much of 255 are one grey


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The pictures from a source, all of one size.

    Attributes:
        line_N1HW: uint8, dark lines on white.
        colour_N3HW: uint8; None: pictures to colour, whose colours nobody knows.
        reference_N3HW: uint8; None: none are given, and each picture gets another one as its reference.
        region_NHW: uint8, numbers of the run's regions, `NO_REGION` elsewhere; None: no regions.
        reference_region_NHW: the same for the references.
        names: where each picture came from.
        artists: who made each picture; empty if the source does not say.
        has_test: whether the source has a test part; if not, these are all of its pictures.
        notes: what was read and what was made or left out, one sentence each.
    """

    line_N1HW: Tensor
    colour_N3HW: Tensor | None
    reference_N3HW: Tensor | None = None
    region_NHW: Tensor | None = None
    reference_region_NHW: Tensor | None = None
    names: tuple[str, ...]
    artists: tuple[str, ...] = ()
    has_test: bool = False
    notes: tuple[str, ...] = ()

    def select(self, index: Index) -> Pairs:
        """The pictures at `index`, in that order."""
        row = torch.from_numpy(index)

        def of(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[row]

        return replace(
            self,
            line_N1HW=self.line_N1HW[row],
            colour_N3HW=of(self.colour_N3HW),
            reference_N3HW=of(self.reference_N3HW),
            region_NHW=of(self.region_NHW),
            reference_region_NHW=of(self.reference_region_NHW),
            names=tuple(self.names[i] for i in index),
            artists=tuple(self.artists[i] for i in index) if self.artists else (),
        )

    def with_references(self) -> Pairs:
        """The same pictures, each with a reference: the next one of the same artist, or else of any."""
        if self.reference_N3HW is not None or self.colour_N3HW is None:
            return self
        index = torch.from_numpy(_next_of_artist(len(self.names), self.artists))
        region = None if self.region_NHW is None else self.region_NHW[index]
        alone = ("one picture alone is its own reference: fd_rand and colour_error say nothing of it",)
        return replace(
            self,
            reference_N3HW=self.colour_N3HW[index],
            reference_region_NHW=region,
            notes=(*self.notes, *(alone if len(index) == 1 else ())),
        )


def _next_of_artist(count: int, artists: Sequence[str]) -> Index:
    found = np.arange(count)
    who = np.array(artists or [""] * count)
    for name in np.unique(who):
        mine = np.flatnonzero(who == name)
        found[mine] = np.roll(mine, -1) if len(mine) > 1 else (mine + 1) % count
    return found


def resized(value_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 pictures at another size: bilinear, with every pixel counted where they shrink."""
    if tuple(value_NCHW.shape[2:]) == size:
        return value_NCHW
    parts = [
        F.interpolate(part.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        for part in value_NCHW.split(64)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def resized_regions(region_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Region numbers at another size, without mixing them."""
    return nearest_pixels(region_NHW, size)


def refuse_grey(colour_N3HW: Tensor, names: Sequence[str], source: str) -> None:
    """Raises DataError: a picture that should have colours has none."""
    spread_N = (colour_N3HW.amax(dim=1).int() - colour_N3HW.amin(dim=1).int()).flatten(1).amax(dim=1)
    grey = [names[i] for i in (spread_N <= _GREY).nonzero().flatten().tolist()]
    if grey:
        raise DataError(
            f"{source}: {listed(grey)} should be coloured, but {'is' if len(grey) == 1 else 'are'} grey. Give the "
            "coloured picture, or take the pair out."
        )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more pictures" if more > 0 else "")


def numbered_regions(
    value_NHW: Tensor, value_names: Sequence[str] | None, classes: Sequence[str], names: Sequence[str], source: str
) -> Tensor:
    """uint8 [N, H, W]: positions in the run's regions; `NO_REGION` stays.

    Args:
        value_names: names of the values from 0 on; None: they are numbers of the run's regions.

    Raises:
        DataError: a value has no name, or its name is not one of the run's regions.
    """
    place = {name: number for number, name in enumerate(classes)}
    given = list(classes if value_names is None else value_names)[:NO_REGION]
    table = torch.full((256,), -1, dtype=torch.int16)
    table[NO_REGION] = NO_REGION
    for value, name in enumerate(given):
        table[value] = place.get(name, -1)
    found_NHW = table[value_NHW.long()]
    odd = (found_NHW < 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if odd:
        value = int(value_NHW[odd[0]][found_NHW[odd[0]] < 0][0])
        what, remedy = "has no name", "Name the values from 0 on in `classes`"
        if value < len(given):
            what = f"is {given[value]!r}, which is not in this run"
            remedy = f"Set its pixels to {NO_REGION}, or use another run file"
        raise DataError(
            f"{source}: region value {value} in {listed([names[i] for i in odd])} {what}. {remedy}; the run's "
            f"regions are {', '.join(classes)}"
        )
    return found_NHW.to(torch.uint8)
