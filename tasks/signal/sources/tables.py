"""Reads the columns of one CSV or parquet file: one row per sample, one column per channel.

Called by `recordings.py`. Knows neither windows nor labels.

Legend: L samples of a recording, C channels.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from fednc.common.errors import DataError, MissingExtraError
from fednc.tasks.signal.sources.windows import Array

Table = dict[str, Array]


def read_table(path: Path, wanted: Collection[str]) -> tuple[Table, tuple[str, ...]]:
    """(the wanted columns that the file has, as texts or numbers; the names of all of its columns).

    Raises:
        DataError: the file cannot be read as a table.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    return (_read_parquet if path.suffix.lower() == ".parquet" else _read_csv)(path, wanted)


def numbers(table: Table, names: Sequence[str], path: Path) -> Array:
    """float64 [L, C]: the columns `names`. Raises DataError for a cell that is not a number."""
    columns = [_numbers_of(table[name], name, path) for name in names]
    return np.stack(columns, axis=1)


def _numbers_of(values: Array, name: str, path: Path) -> Array:
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    try:
        return values.astype(np.float64)
    except (ValueError, TypeError):
        place, cell = next((i, cell) for i, cell in enumerate(values.tolist()) if not _is_number(cell))
        raise DataError(
            f"{path}: row {place + 1} of column {name!r} is {cell!r}, expected a number. Fill gaps "
            "or cut them out."
        ) from None


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _read_csv(path: Path, wanted: Collection[str]) -> tuple[Table, tuple[str, ...]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            head = tuple(name.strip() for name in next(rows, ()))
            cells = [row for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read as a CSV file in UTF-8 ({e})") from e
    if not head or len(set(head)) < len(head):
        raise DataError(
            f"{path}: the first line must name the columns, each once; it has {', '.join(head) or 'none'}"
        )
    odd = next((i for i, row in enumerate(cells) if len(row) != len(head)), None)
    if odd is not None:
        raise DataError(f"{path}: row {odd + 1} has {len(cells[odd])} cells, but there are {len(head)} columns")
    places = {name: head.index(name) for name in wanted if name in head}
    return {name: np.array([row[place].strip() for row in cells], str) for name, place in places.items()}, head


def _read_parquet(path: Path, wanted: Collection[str]) -> tuple[Table, tuple[str, ...]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "tabular", "parquet files") from e
    try:
        head = tuple(parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=[name for name in head if name in wanted])
    except (OSError, ArrowException) as e:
        raise DataError(f"{path}: cannot be read as a parquet file ({e})") from e
    return {name: _as_array(table[name].to_numpy()) for name in table.column_names}, head


def _as_array(values: Array) -> Array:
    return values.astype(str) if values.dtype.kind == "O" else values
