"""The result of every dense reader: pictures, maps, and what the values of the labels are called.

Used by the readers and by `select.py`, which chooses among them and maps labels to the run's classes.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.splits import Index
from fednc.tasks.dense.maps import INSTANCE, MAPS, MOST_INSTANCE, NO_INSTANCE, VOID

Part = Literal["train", "test"]
LISTED = 10  # most bad pictures named in one error
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The pictures from a source.

    Attributes:
        pixel_NCHW: uint8.
        maps: by kind (`maps.MAPS`); labels have the values of the source.
        value_names: names of the label values from 0 on; None: they are numbers of the run's classes.
        names: where each picture came from.
        sites: the place that each picture belongs to; empty if the source has none.
        whole: for each picture, reads it at its own size, uint8 [H, W, 3]; empty if the source has no other size.
        has_test: whether the source has a test part; if not, these are all of its pictures.
        notes: what was read and what was left out, one sentence each.
    """

    pixel_NCHW: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    value_names: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    whole: tuple[Callable[[], Array], ...] = ()
    has_test: bool = False
    notes: tuple[str, ...] = ()

    def select(self, index: Index) -> Pictures:
        """The pictures at `index`, in that order."""
        row = torch.from_numpy(index)
        return replace(
            self,
            pixel_NCHW=self.pixel_NCHW[row],
            maps={kind: value[row] for kind, value in self.maps.items()},
            names=tuple(self.names[i] for i in index) if self.names else (),
            sites=tuple(self.sites[i] for i in index) if self.sites else (),
            whole=tuple(self.whole[i] for i in index) if self.whole else (),
        )


def map_tensor(kind: str, values: Array, pictures: tuple[int, int, int], source: str) -> Tensor:
    """The values of a map as it is stored. Raises DataError: another size than the pictures, or not that kind.

    Args:
        pictures: their number, height and width.
    """
    channels = MAPS[kind].channels
    if channels and values.ndim == 4 and values.shape[3] == channels:
        values = values.transpose(0, 3, 1, 2)
    count, height, width = pictures
    expected = (count, channels, height, width) if channels else pictures
    if values.shape != expected:
        size = "x".join(map(str, values.shape[1:]))
        raise DataError(
            f"{source}: the {kind} map has shape {list(values.shape)} ({size}), but there are {count} pictures of "
            f"{height}x{width}. Every picture needs a {kind} map of its own size; make it again from the picture."
        )
    wants_numbers = not MAPS[kind].dtype.is_floating_point
    if values.dtype.kind not in ("iub" if wants_numbers else "f"):
        wanted = "whole numbers" if wants_numbers else "floats"
        raise DataError(f"{source}: the {kind} map is {values.dtype}, expected {wanted}")
    if wants_numbers and values.size:
        _refuse_outside(kind, values, source)
    return torch.from_numpy(np.ascontiguousarray(values)).to(MAPS[kind].dtype)


def _refuse_outside(kind: str, values: Array, source: str) -> None:
    """Raises DataError: a value that would become another one where the map is stored."""
    least, most = (NO_INSTANCE, MOST_INSTANCE) if kind == INSTANCE else (0, VOID)
    odd = int(values.min()) if values.min() < least else int(values.max())
    if not least <= odd <= most:
        what = (
            f"Number the objects of each picture from 0 on; {NO_INSTANCE} is none."
            if kind == INSTANCE
            else f"Store the values as bytes; {VOID} is where nothing is known."
        )
        raise DataError(f"{source}: {kind} value {odd} is outside {least} to {most}. {what}")


def several(errors: Sequence[str], total: int, source: str) -> DataError:
    """One error for all unusable pictures, so that the first one does not hide the others."""
    if len(errors) == 1:
        return DataError(errors[0])
    more = len(errors) - LISTED
    lines = [f"{source}: {len(errors)} of {total} pictures cannot be used:", *errors[:LISTED]]
    return DataError("\n  ".join([*lines, *([f"... and {more} more"] if more > 0 else [])]))
