"""The rows of one subject, domain or site: what `only=COLUMN=VALUE` in a data spec chooses.

One file with the rows of many owners becomes the data of one of them, so that a natural client (a person, a
hospital, a camera) can be simulated without cutting the file. Called by the tasks' readers, which know where a
column is. Knows no kind of data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.data_spec import DataSpec
from fednc.common.tasks.splits import Index

SHOWN = 40  # values named in a message

Column = np.ndarray[Any, np.dtype[Any]]


def chosen_rows(spec: DataSpec, rows: int, column: Callable[[str], Column]) -> Index:
    """Positions of the rows with the values that `spec.only` names, ascending; all rows if it names none.

    Args:
        spec: the data spec.
        rows: how many rows there are.
        column: the values of a column by its name, one per row; raises DataError if there is no such column.

    Raises:
        DataError: a column has another length, or no row has one of the values.
    """
    keep_N = np.ones(rows, dtype=bool)
    for name, wanted in spec.only.items():
        values = column(name)
        if values.shape != (rows,):
            raise DataError(
                f"{spec.source}: {name!r} has shape {list(values.shape)}, but there are {rows} rows: "
                "`only` needs one value for each row"
            )
        text_N = values.astype(str)
        there = set(text_N.tolist())
        if missing := [value for value in wanted if value not in there]:
            raise DataError(f"{spec.source}: no row has {name} = {missing[0]!r}; there are {_listed(there)}")
        keep_N &= np.isin(text_N, wanted)
    if spec.only and not keep_N.any():
        raise DataError(f"{spec.source}: no row has all of {', '.join(spec.only)} as `only` asks for")
    return np.flatnonzero(keep_N)


def part_column(arrays: dict[str, Column], part: str, spec: DataSpec) -> Callable[[str], Column]:
    """For the arrays of an .npz: column `subject` is the array `subject_train` of part `train`, or `subject`."""

    def column(name: str) -> Column:
        for key in (f"{name}_{part}", name):
            if key in arrays:
                return arrays[key]
        raise DataError(
            f"{spec.source}: has no array {name!r} for `only`; there are {', '.join(sorted(arrays)) or 'none'}"
        )

    return column


def names_for(spec: DataSpec, parts: tuple[str, ...] = ("train", "test")) -> set[str]:
    """Names of the arrays that `part_column` may look up."""
    return {key for name in spec.only for key in (name, *(f"{name}_{part}" for part in parts))}


def _listed(values: set[str]) -> str:
    ordered = sorted(values, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
