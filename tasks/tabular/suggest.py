"""Suggests `[task]` keys that fit a given table: target, kinds of columns, classes.

`fednc init` calls it through the task, before there is a run file; later only the run file counts. The run file
goes to every site, so nothing of the rows is written into it but the names of the columns, the classes, and
categories of columns that the owner chose to list.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks.api import Suggestion
from fednc.tasks.tabular import cells
from fednc.tasks.tabular.files import Table, read_table

WISHES = ("target", "kind", "classes", "list_categories", "ignore", "id")
_TARGETS = ("target", "label", "outcome", "class", "y", "diagnosis", "state", "status")
_IDS = ("id", "patient", "patient_id", "patientid", "subject", "subject_id", "row", "name", "index")
_MOST_CLASSES = 20  # a number with more values is to be predicted as a number
_MANY_ROWS = 2000  # with fewer rows at a site, hidden layers learn more of chance than of the target
_RARE = 10  # rows below which a class of this file is pointed out


@dataclass
class _Found:
    """What the columns look like."""

    numeric: list[str] = field(default_factory=list)
    boolean: list[str] = field(default_factory=list)
    categorical: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def suggest(spec: str, wishes: Mapping[str, Any]) -> Suggestion:
    """Keys of `[task]` for the table at `spec`.

    Args:
        wishes: what the user decided, some of `WISHES`.

    Raises:
        DataError: the data is missing or unreadable, or has no such columns.
        ConfigError: a wish that is none of these.
    """
    for name in wishes:
        if name not in WISHES:
            raise ConfigError(f"--{name.replace('_', '-')} is not for tables: leave it out")
    table = read_table(spec)
    texts = {name: cells.present(column, cells.MISSING) for name, column in table.columns.items()}
    target, notes = _target(table, texts, str(wishes.get("target", "")))
    split = next((name for name, column in texts.items() if name.lower() == "split" and _is_split(column)), "")
    id_column = str(wishes.get("id", "")) or next(
        (name for name in texts if name.lower() in _IDS and name != target), ""
    )
    ignored = {target, split, id_column, *wishes.get("ignore", ())}
    if odd := sorted((set(wishes.get("ignore", ())) | set(wishes.get("list_categories", ()))) - set(texts)):
        raise DataError(f"{spec}: no column {odd[0]!r}; there are {', '.join(texts)}")
    found = _Found()
    for name, column in texts.items():
        if name not in ignored:
            _sort_in(found, name, column, table, listed=name in wishes.get("list_categories", ()))
    options, more = _target_options(texts[target], target, table, wishes)
    options |= {"numeric": found.numeric, "boolean": found.boolean, "categorical": found.categorical}
    options |= {key: value for key, value in (("split_column", split), ("id", id_column)) if value}
    options = {key: value for key, value in options.items() if value not in ([], {})}
    options |= {"model": "mlp", "dropout": 0.1} if table.rows >= _MANY_ROWS else {"model": "linear"}
    if not found.numeric and not found.boolean and not found.categorical:
        raise DataError(f"{spec}: no column is left to predict {target!r} from")
    return Suggestion(options, (*notes, *more, *found.notes, *_left_out(found)), tables=_tables(options))


def _tables(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Further tables of the run file that suit tables."""
    train = {
        "batch": 32,
        "epochs": 2,
        "lr": 0.003,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "cosine",
    }
    if options["kind"] == "regression":
        return {"method": {"name": "fedavg"}, "train": {**train, "lr": 0.01}}
    return {"method": {"name": "fednc"}, "train": train, "frame": {"dim": 32}}


def _target(table: Table, texts: Mapping[str, cells.Texts], wanted: str) -> tuple[str, list[str]]:
    if wanted:
        table.column(wanted, "target")
        return wanted, []
    lower = {name.lower(): name for name in texts}
    possible = [name for name in texts if name.lower() not in (*_IDS, "split")] or list(texts)
    guess = next((lower[name] for name in _TARGETS if name in lower), possible[-1])
    return guess, [f"the target is guessed to be column {guess!r}; choose another with --target NAME"]


def _is_split(column: cells.Texts) -> bool:
    return {text.lower() for text in column if text is not None} <= {"train", "test"}


def _numbers(column: cells.Texts, table: Table) -> cells.Floats | None:
    try:
        return cells.as_numbers(column, table.where(""), decimal_comma=table.decimal_comma)
    except DataError:
        return None


def _sort_in(found: _Found, name: str, column: cells.Texts, table: Table, *, listed: bool) -> None:
    """Add one column where it belongs."""
    values = [text for text in column if text is not None]
    different = {cells.comparable(text) for text in values}
    if not values:
        found.left_out.append(f"{name} (no values)")
        return
    if listed:
        found.categorical[name] = sorted(different)
        return
    if len(different) <= 2 and _is_boolean(column, table):
        found.boolean.append(name)
        return
    number_N = _numbers(column, table)
    if number_N is not None:
        found.numeric.append(name)
        whole = bool((np.nan_to_num(number_N) % 1 == 0).all())
        if whole and 2 < len(different) <= 8:
            found.notes.append(
                f"column {name!r} has {len(different)} different whole numbers and is taken as numeric; if they "
                f"are codes, move it to task.categorical, or use --list-categories {name}"
            )
        return
    if len(different) > max(20, len(values) // 2):
        found.left_out.append(f"{name} (nearly every row has text of its own)")
        return
    found.categorical[name] = []


def _is_boolean(column: cells.Texts, table: Table) -> bool:
    try:
        cells.as_booleans(column, table.where(""))
    except DataError:
        return False
    return True


def _left_out(found: _Found) -> tuple[str, ...]:
    return (f"left out: {', '.join(found.left_out)}",) if found.left_out else ()


def _target_options(
    column: cells.Texts, target: str, table: Table, wishes: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """kind, target and classes."""
    if table.class_names and "classes" not in wishes:
        wishes = {**wishes, "classes": table.class_names}
    counts = Counter(cells.comparable(text) for text in column if text is not None)
    number_N = _numbers(column, table)
    many = number_N is not None and len(counts) > _MOST_CLASSES
    kind = wishes.get("kind") or ("regression" if many and "classes" not in wishes else "classification")
    options: dict[str, Any] = {"kind": kind, "target": target}
    if kind == "regression":
        if number_N is None:
            raise DataError(f"{table.where(target)}: has text, so it cannot be predicted as a number")
        return options, [] if "kind" in wishes else [
            f"{target!r} has {len(counts)} different numbers: a regression"
        ]
    if "classes" in wishes:
        return {**options, "classes": list(wishes["classes"])}, []
    if len(counts) < 2 or len(counts) > 4096:
        raise DataError(
            f"{table.where(target)}: has {len(counts)} different values; a classifier needs at least two. Name "
            "the classes of all sites with --class-names, or another target with --target"
        )
    names = sorted(counts, key=lambda name: (_order(name), name))
    notes = [
        f"the classes {', '.join(names[:10])} are those of this file: add the ones that only other sites have"
        + (f". The second, {names[1]!r}, is the positive one" if len(names) == 2 else "")
    ]
    rare = [name for name in names if counts[name] < _RARE]
    if rare:
        notes.append(
            f"classes with fewer than {_RARE} rows here: {', '.join(rare[:10])}. The run file goes to every site: "
            "check that their names may be known, or name the classes with --class-names"
        )
    return {**options, "classes": names}, notes


def _order(name: str) -> float:
    """Negative answers first, numbers by size."""
    if name.lower() in ("no", "false", "f", "n", "negative", "healthy", "alive", "control"):
        return -math.inf
    return (
        float(name) if cells.comparable(name) == name and name.lstrip("-").replace(".", "", 1).isdigit() else 0.0
    )
