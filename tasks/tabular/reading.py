"""From a table to the examples that the model trains on: inputs as float64, targets, and what was found per
column.

Called by both tasks of tables. The run file's columns are looked up by name, so the order in a file does not
matter.

Legend: N rows, X input columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.config.run import RunConfig
from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import parse_spec
from fednc.common.tasks.row_choice import chosen_rows
from fednc.common.tasks.tensor_data import hold_out_index
from fednc.tasks.tabular import cells
from fednc.tasks.tabular.files import Table, read_table
from fednc.tasks.tabular.options import TabularOptions

TEST_SEED = 0  # for `evaluate.test_share`: the same for every run and on every machine
_PARTS = ("train", "test")

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table as numbers.

    Attributes:
        input_NX: float64; NaN where a value is missing.
        target_N: number of the class, or the number to predict; NaN where unknown.
        names: of the rows, for the output of `fednc predict`.
        notes: what was left out, one sentence each.
        columns: what was found in each column.
    """

    input_NX: Tensor
    target_N: Tensor
    names: tuple[str, ...]
    notes: tuple[str, ...]
    columns: tuple[Mapping[str, object], ...]

    def select(self, index: Index) -> Rows:
        """The rows at `index`."""
        row_B = torch.from_numpy(index)
        names = tuple(self.names[i] for i in index)
        return Rows(self.input_NX[row_B], self.target_N[row_B], names, self.notes, self.columns)


def read_rows(spec: str, purpose: Purpose, options: TabularOptions, run: RunConfig) -> Rows:
    """The rows at a data spec for a purpose.

    Rows without a target are left out, with a note; for prediction they are kept. Raises DataError.
    """
    table, notes = _part(read_table(spec), purpose, options)
    owner = chosen_rows(parse_spec(spec), table.rows, lambda name: table.column(name, "column for `only`"))
    columns = _columns(table, options, salt_of(run))
    target_N = _target(table, purpose, options)
    unused = [name for name in table.columns if name not in _named(options)]
    if unused:
        notes.append(f"{len(unused)} columns are not used: {', '.join(unused[:20])}")
    rows = Rows(
        input_NX=torch.from_numpy(np.stack([column.code_N for column in columns], axis=1)),
        target_N=torch.from_numpy(target_N),
        names=_row_names(table, options),
        notes=tuple(notes + [column.note for column in columns if column.note]),
        columns=tuple(column.found for column in columns),
    )
    return rows.select(owner) if purpose == "input" else _usable(rows, table, owner, purpose, options, run)


def salt_of(run: RunConfig) -> str:
    """Makes hash buckets of one run differ from those of others; both sides know it."""
    return hashlib.sha256(f"{run.name}\0{run.seed}".encode()).hexdigest()


def _named(options: TabularOptions) -> set[str]:
    return {*options.inputs, options.target, options.split_column, options.id}


def _row_names(table: Table, options: TabularOptions) -> tuple[str, ...]:
    if not options.id or options.id not in table.columns:
        return table.row_names
    pairs = zip(table.columns[options.id], table.row_names, strict=True)
    return tuple(text or other for text, other in pairs)


def _part(table: Table, purpose: Purpose, options: TabularOptions) -> tuple[Table, list[str]]:
    """The rows of the split column's part; all rows without such a column, or to predict on."""
    name = options.split_column
    if not name or purpose == "input":
        return table, []
    texts = [(text or "").strip().lower() for text in table.column(name, "split_column")]
    odd = [row for row, text in enumerate(texts) if text not in _PARTS]
    if odd:
        raise DataError(
            f"{table.where(name)}: row {table.where(name).row(odd[0])} has {texts[odd[0]]!r:.40}, expected "
            "`train` or `test`; correct the file, or leave out task.split_column"
        )
    index = np.flatnonzero(np.array(texts) == purpose)
    if not len(index):
        raise DataError(f"{table.where(name)}: no row says `{purpose}`, so there is nothing to {purpose} on")
    others = table.rows - len(index)
    return table.select(index), [f"{len(index)} rows say `{purpose}` in column {name!r}; {others} do not"]


@dataclass(frozen=True, eq=False)
class _Column:
    code_N: cells.Floats
    found: Mapping[str, object]
    note: str = ""


def _columns(table: Table, options: TabularOptions, salt: str) -> list[_Column]:
    """All inputs. Raises one DataError with the problems of all columns."""
    found, problems = [], []
    for name in options.inputs:
        try:
            found.append(_column(table, name, options, salt))
        except DataError as e:
            problems.append(str(e))
    if problems:
        raise DataError("\n".join(problems[:10]))
    return found


def _column(table: Table, name: str, options: TabularOptions, salt: str) -> _Column:
    listed = options.categorical.get(name)
    texts = cells.present(table.column(name, "input column"), options.missing, listed or ())
    where = table.where(name)
    if name in options.numeric:
        code_N, kind = cells.as_numbers(texts, where, decimal_comma=table.decimal_comma), "numeric"
    elif name in options.boolean:
        code_N, kind = cells.as_booleans(texts, where), "boolean"
    elif listed:
        code_N, kind = cells.as_places(texts, listed), f"{len(listed)} categories"
    else:
        code_N, kind = cells.as_buckets(texts, name, options.buckets, salt), "categories, not listed"
    absent, unknown = int(np.isnan(code_N).sum()), int((code_N == cells.UNKNOWN).sum()) if listed else 0
    row = {
        "column": name,
        "kind": kind,
        "missing": absent,
        "unknown": unknown,
        "values": _range(texts, code_N, kind),
    }
    return _Column(code_N, row, _note(name, code_N, len(texts), absent, unknown))


def _range(texts: cells.Texts, code_N: cells.Floats, kind: str) -> str:
    """What to show of a column to its owner."""
    known_N = code_N[~np.isnan(code_N)]
    if not len(known_N):
        return ""
    if kind == "numeric":
        return f"{known_N.min():.6g} to {known_N.max():.6g}, mean {known_N.mean():.4g}"
    if kind == "boolean":
        return f"{known_N.mean():.1%} yes"
    return f"{len({text for text in texts if text is not None})} different"


def _note(name: str, code_N: cells.Floats, rows: int, absent: int, unknown: int) -> str:
    if absent == rows:
        return f"column {name!r} has no values here; every row counts as missing"
    if unknown:
        return (
            f"column {name!r}: {unknown} rows have a category that the run file does not list; they count as other"
        )
    known_N = code_N[~np.isnan(code_N)]
    if rows > 1 and (known_N == known_N[0]).all():
        return f"column {name!r} has the same value in all rows here"
    return ""


def _target(table: Table, purpose: Purpose, options: TabularOptions) -> cells.Floats:
    """NaN where unknown. Raises DataError for a target that is no class, or no number."""
    name = options.target
    if purpose == "input" and name not in table.columns:
        return np.full(table.rows, np.nan)
    texts = cells.present(table.column(name, "target"), options.missing, options.classes)
    where = table.where(name)
    if options.kind == "regression":
        return cells.as_numbers(texts, where, decimal_comma=table.decimal_comma)
    if table.class_names:
        texts = _renamed(texts, table.class_names, where)
    code_N = cells.as_places(texts, options.classes)
    if (code_N == cells.UNKNOWN).any():
        raise cells.refused_labels(texts, code_N, options.classes, where)
    return code_N


def _renamed(texts: cells.Texts, names: tuple[str, ...], where: cells.Where) -> cells.Texts:
    """The owner's names of integer labels."""
    place_N = cells.as_places(texts, [str(number) for number in range(len(names))])
    if (place_N == cells.UNKNOWN).any():
        raise DataError(
            f"{where}: --class-names has {len(names)} names, for labels 0 to {len(names) - 1}, and the column has "
            "others; give one name for each label, or leave it out if the column has names"
        )
    found = np.empty(len(texts), dtype=object)
    for row, place in enumerate(place_N):
        found[row] = None if np.isnan(place) else names[int(place)]
    return found


def _usable(
    rows: Rows, table: Table, owner: Index, purpose: Purpose, options: TabularOptions, run: RunConfig
) -> Rows:
    """The rows with a target; without a split column only the part that `evaluate.test_share` leaves.

    `owner`: rows that `only` of the data spec chooses. They are chosen last, so that a server that reads the whole
    table divides it like a client that reads its own rows.
    """
    known = np.flatnonzero(~rows.target_N.isnan().numpy())
    notes = list(rows.notes)
    if left_out := len(rows.target_N) - len(known):
        notes.append(f"{left_out} rows have no {options.target!r} and are left out")
    if not len(known):
        raise DataError(f"{table.where(options.target)}: no row has a value, so no rows are left")
    share = run.evaluate.test_share
    if 0 < share < 1 and not options.split_column:
        label_N = rows.target_N.numpy()[known]
        groups_N = label_N.astype(np.int64) if options.kind == "classification" else np.zeros(len(known), np.int64)
        rest, held = hold_out_index(groups_N, share, TEST_SEED)
        known = known[rest if purpose == "train" else held]
        notes.append(f"{len(known)} rows are for {purpose} (evaluate.test_share = {share:g})")
    known = known[np.isin(known, owner)]
    if not len(known):
        raise DataError(f"{table.source}: of the rows that `only` chooses, none is left for {purpose}")
    chosen = rows.select(known)
    return Rows(chosen.input_NX, chosen.target_N, chosen.names, tuple(notes), chosen.columns)
