"""The result of every source: windows with labels; and how a recording is cut into windows.

Used by the readers and by `select.py`, which divides windows into training and test data.

Legend: N windows, L samples of a recording, T samples of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.splits import Index

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """The windows from a source, in the order in which they were recorded.

    Attributes:
        window_NTC: float32.
        label_N: names of classes; None if the source has no labels.
        group_N: which recording or person a window comes from, for the division into training and test data.
        names: where each window came from.
        has_test: whether the source has a test part; if not, these are all of its windows.
        columns: further values of each window by name, for `only` in the data spec.
        notes: what was read and what was left out, one sentence each.
    """

    window_NTC: Array
    label_N: tuple[str, ...] | None
    group_N: Array
    names: tuple[str, ...]
    has_test: bool = False
    columns: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def select(self, index: Index) -> Windows:
        """The windows at `index`, in that order."""
        return replace(
            self,
            window_NTC=self.window_NTC[index],
            label_N=None if self.label_N is None else tuple(self.label_N[i] for i in index),
            group_N=self.group_N[index],
            names=tuple(self.names[i] for i in index),
            columns={name: values[index] for name, values in self.columns.items()},
        )


def cut(values_L: Array, window: int, step: int) -> Array:
    """[N, T, ...]: all whole windows of [L, ...], one every `step` samples; N is 0 if it is too short."""
    count = max(0, (len(values_L) - window) // step + 1)
    place_NT = step * np.arange(count)[:, None] + np.arange(window)
    windows: Array = values_L[place_NT]
    return windows


def unused_samples(length: int, window: int, step: int) -> int:
    """How many samples of a recording are in no window because they are after the last or between two."""
    count = max(0, (length - window) // step + 1)
    return length if count == 0 else length - window - (count - 1) * min(step, window)


def refuse_holes(values: Array, source: str, names: tuple[str, ...]) -> None:
    """Raises DataError for a value that is not a finite number; the last axis is the channels."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        *place, channel = bad[0].tolist()
        raise DataError(
            f"{source}: {len(bad)} values are missing or not finite; the first is at {place} of channel "
            f"{names[channel]!r}. Fill gaps or cut them out: only the data's owner knows which is right."
        )
