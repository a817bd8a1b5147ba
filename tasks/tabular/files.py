"""Reads tables from CSV and parquet files into columns of text.

Called by the task for every data spec: `csv:PATH`, `parquet:PATH` or a path alone, of a file or of a folder of
such files. Everything stays text here; what a cell means is in `cells.py`. pandas does the parsing and is
imported on first use, because it belongs to the extra `tabular`.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks.data_spec import DataSpec, parse_spec
from fednc.tasks.tabular.cells import Where

KINDS = {"csv": (".csv", ".tsv", ".txt"), "parquet": (".parquet", ".pq")}
SPECS = "csv:PATH or parquet:PATH, a file or a folder of such files"
_SEPARATORS = ",;\t|"

Column = np.ndarray[Any, np.dtype[np.object_]]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text by name; None where a file has no value.

    Attributes:
        source: where it was read, for messages.
        rows: number of rows.
        columns: every column of the files.
        row_names: `file.csv:7`, counted from 1 without the header.
        decimal_comma: whether 3,5 is a number; true for files with another separator than the comma.
        class_names: names of integer labels, as given by the data's owner.
    """

    source: str
    rows: int
    columns: Mapping[str, Column]
    row_names: tuple[str, ...]
    decimal_comma: bool = False
    class_names: tuple[str, ...] = field(default=())

    def column(self, name: str, role: str) -> Column:
        """One column. Raises DataError if there is none."""
        if name not in self.columns:
            close = [other for other in self.columns if other.strip().lower() == name.strip().lower()]
            hint = f" Is it {close[0]!r}? Names must be equal." if close else ""
            raise DataError(
                f"{self.source}: no column {name!r}, the run's {role}; there are {_listed(self.columns)}.{hint} "
                f"Rename the column, or give its name here with --columns {name}=NAME"
            )
        return self.columns[name]

    def where(self, name: str) -> Where:
        """File and column, for messages."""
        return Where(f"{self.source}: column {name!r}", self.row_names)

    def select(self, index: np.ndarray[Any, np.dtype[np.int64]]) -> Table:
        """The rows at `index`, in that order."""
        return Table(
            source=self.source,
            rows=len(index),
            columns={name: column[index] for name, column in self.columns.items()},
            row_names=tuple(self.row_names[row] for row in index),
            decimal_comma=self.decimal_comma,
            class_names=self.class_names,
        )


def read_table(text: str) -> Table:
    """The table at a data spec.

    Raises:
        DataError: no such file, not a table, a repeated or missing column name, files that do not fit together.
        MissingExtraError: pandas is not installed.
    """
    spec = parse_spec(text)
    kind, paths = _paths(spec)
    reader = _read_csv if kind == "csv" else _read_parquet
    parts = [reader(path) for path in paths]
    table = parts[0] if len(parts) == 1 else _joined(spec.source, parts)
    if not table.rows:
        raise DataError(f"{spec.source}: has no rows; give a table with at least one row below its header")
    return _renamed(table, spec)


def _paths(spec: DataSpec) -> tuple[str, list[Path]]:
    """Kind and files of a spec."""
    kind = spec.kind if spec.has_colon and spec.kind in KINDS else ""
    path = Path(spec.place if kind else spec.source).expanduser()
    if not path.exists():
        expected = "" if kind or path.suffix else f" Expected {SPECS}"
        raise DataError(f"{spec.text}: there is no {path}.{expected}")
    if not path.is_dir():
        kind = kind or next((name for name, ends in KINDS.items() if path.suffix.lower() in ends), "")
        if not kind:
            raise DataError(f"{spec.text}: cannot tell what {path.name} is; give {SPECS}")
        return kind, [path]
    found = {
        name: sorted(file for file in path.iterdir() if file.suffix.lower() in ends and file.name[0] != ".")
        for name, ends in KINDS.items()
        if kind in ("", name)
    }
    kinds = [name for name, files in found.items() if files]
    if len(kinds) != 1:
        what = "both CSV and parquet files" if kinds else f"no {kind or 'CSV or parquet'} files"
        raise DataError(f"{spec.text}: the folder has {what}; give {SPECS}")
    return kinds[0], found[kinds[0]]


def _read_csv(path: Path) -> Table:
    text = _text_of(path)
    first = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=_unquoted(first).count)
    header = next(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True), [])
    names = _checked_names(header, str(path))
    pandas = _pandas()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                io.StringIO(text),
                sep=separator,
                header=0,
                names=names,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skipinitialspace=True,
            )
    except (ValueError, pandas.errors.ParserWarning) as e:
        raise DataError(
            f"{path}: a row does not fit the header, which has {len(names)} columns separated by {separator!r} "
            f"({' '.join(str(e).split())}). Put text that contains the separator in double quotes"
        ) from e
    columns = {name: _objects(frame[name]) for name in names}
    return _table(path, len(frame), columns, decimal_comma=separator != ",")


def _read_parquet(path: Path) -> Table:
    pandas = _pandas()
    try:
        frame = pandas.read_parquet(path)
    except ImportError as e:
        raise MissingExtraError("pyarrow", "tabular", "reading parquet files") from e
    except Exception as e:  # pyarrow has errors of its own
        raise DataError(f"{path}: cannot be read as a parquet file ({type(e).__name__}: {e!s:.200})") from e
    names = _checked_names(list(map(str, frame.columns)), str(path))
    columns = {name: _objects(frame.iloc[:, place]) for place, name in enumerate(names)}
    return _table(path, len(frame), columns)


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    if not data.strip():
        raise DataError(f"{path}: is empty; the first line must name the columns")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise DataError(
            f"{path}: is not UTF-8 text (byte {e.start}, line {line}); save it as 'CSV UTF-8', or convert it: "
            f"iconv -f ISO-8859-1 -t UTF-8 {path.name}"
        ) from e


def _unquoted(line: str) -> str:
    return "".join(line.split('"')[::2])


def _checked_names(header: list[str], source: str) -> list[str]:
    names = [name.strip() for name in header]
    if not any(names):
        raise DataError(f"{source}: the first line must name the columns")
    if repeated := [name for name, times in Counter(filter(None, names)).items() if times > 1]:
        raise DataError(f"{source}: column {repeated[0]!r} occurs twice; rename or remove one of them")
    # A nameless first column is the row number that pandas writes; nobody can refer to it.
    return [name or f"column {number + 1}" for number, name in enumerate(names)]


def _objects(series: Any) -> Column:
    """Text of each cell, None where the file has no value."""
    if series.dtype == object and all(isinstance(value, str) for value in series):
        texts: Column = series.to_numpy(dtype=object)
        return texts
    found = np.empty(len(series), dtype=object)
    for row, (value, absent) in enumerate(zip(series, series.isna(), strict=True)):
        found[row] = None if absent else _cell(value)
    return found


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)


def _table(path: Path, rows: int, columns: dict[str, Column], *, decimal_comma: bool = False) -> Table:
    names = tuple(f"{path.name}:{row + 1}" for row in range(rows))
    return Table(str(path), rows, columns, names, decimal_comma)


def _joined(source: str, parts: list[Table]) -> Table:
    """The rows of several files with the same columns, in any order."""
    first = set(parts[0].columns)
    for part in parts[1:]:
        if odd := sorted(first ^ set(part.columns)):
            raise DataError(
                f"{part.source}: its columns are not those of {parts[0].source}; they differ in {_listed(odd)}"
            )
    return Table(
        source=source,
        rows=sum(part.rows for part in parts),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        row_names=tuple(name for part in parts for name in part.row_names),
        decimal_comma=any(part.decimal_comma for part in parts),
    )


def _renamed(table: Table, spec: DataSpec) -> Table:
    """With the names that the run uses, for columns that `--columns RUN=HERE` names."""
    mine = {here: run for run, here in spec.columns.items()}
    if absent := sorted(set(mine) - set(table.columns)):
        raise DataError(f"{spec.source}: --columns names {absent[0]!r}, but there are {_listed(table.columns)}")
    columns = {mine.get(name, name): column for name, column in table.columns.items() if name not in spec.columns}
    columns |= {run: table.columns[here] for here, run in mine.items()}
    return Table(
        source=spec.source,
        rows=table.rows,
        columns=columns,
        row_names=table.row_names,
        decimal_comma=table.decimal_comma,
        class_names=spec.class_names,
    )


def _listed(names: Any) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as e:
        raise MissingExtraError("pandas", "tabular", "reading tables") from e
    return pandas
