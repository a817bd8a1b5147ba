"""Data specs of signals: `npz:PATH`, `csv:PATH`, `parquet:PATH`; and plain paths to predict on.

Called by the task. Chooses the reader, divides data without a test part, and keeps the rows of one owner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec, parse_spec
from fednc.common.tasks.row_choice import chosen_rows
from fednc.common.tasks.splits import Index
from fednc.common.tasks.tensor_data import hold_out_last_index
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources import arrays, recordings
from fednc.tasks.signal.sources.windows import Array, Windows

SPECS = "npz:PATH, csv:PATH or parquet:PATH"
_READERS: dict[str, Callable[[DataSpec, Purpose, SignalOptions], Windows]] = {
    "npz": arrays.read_arrays,
    "csv": recordings.read_recordings,
    "parquet": recordings.read_recordings,
}


def read(text: str, purpose: Purpose, options: SignalOptions, test_share: float = 0.0) -> Windows:
    """The windows of data spec `text`.

    Args:
        test_share: `evaluate.test_share`; divides data without a test part.

    Raises:
        DataError: the data is missing, unreadable, or does not have this run's channels and windows; or test data
            was requested, but all of it may be training data.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    spec = parse_data(text, purpose)
    found = _READERS[spec.kind](spec, purpose, options)
    if not found.has_test:
        found = _divided(found, purpose, test_share, options, spec)
    return found.select(chosen_rows(spec, len(found.names), _column_of(found, spec)))


def parse_data(text: str, purpose: Purpose = "train") -> DataSpec:
    """Parse a spec; for prediction also the path of a file or folder. Raises DataError."""
    spec = parse_spec(text)
    path = Path(spec.source).expanduser()
    if purpose == "input" and spec.kind not in _READERS and path.exists():
        kind = path.suffix.lower().removeprefix(".") if path.is_file() else "csv"
        spec = replace(spec, kind=kind, place=str(path), has_colon=True)
    if spec.kind not in _READERS or not spec.place:
        raise DataError(f"data {text!r}: expected {SPECS}")
    roles = arrays.ROLES if spec.kind == "npz" else recordings.ROLES
    if unknown := sorted(set(spec.columns) - roles):
        raise DataError(
            f"data {text!r}: columns of {spec.kind} data are for {', '.join(sorted(roles))}, not {unknown[0]!r}"
        )
    if spec.class_names and spec.kind != "npz":
        raise DataError(f"data {text!r}: class-names are for npz; {spec.kind} labels are names already")
    return spec


def _column_of(found: Windows, spec: DataSpec) -> Callable[[str], Array]:
    def column(name: str) -> Array:
        if name not in found.columns:
            raise DataError(f"{spec.source}: has no column {name!r} for `only`")
        return found.columns[name]

    return column


def _divided(found: Windows, purpose: Purpose, share: float, options: SignalOptions, spec: DataSpec) -> Windows:
    """The training or test part that `evaluate.test_share` makes from data without a test part.

    The test part is the last windows of each class in each group (recording, person). A training window that
    overlaps one of them is dropped. The division is the same on every machine with the same data, also for a
    client that then keeps the rows of one owner.
    """
    if purpose == "input" and (share == 0 or found.label_N is None):
        return found
    if purpose == "train" and share in (0, 1):
        return found
    if share == 0:
        raise DataError(
            f"{spec.source} has no test part, and its {len(found.names)} windows may be training data. Set "
            "evaluate.test_share, e.g. 0.2, to test on the last windows of each class in each recording, which "
            "clients then leave out (1: all of it is test data, and nobody trains on it). Or use data with a test "
            "part: x_test and y_test in an .npz, a folder `test` beside `train`."
        )
    if share == 1:
        return found
    rest, held, dropped = divided_index(found, share, math.ceil(options.window / options.step) - 1)
    total = len(found.names)
    if purpose == "train":
        note = f"{len(held)} of {total} windows left for the test (evaluate.test_share = {share:g})"
        note += f", and {dropped} that overlap them" if dropped else ""
        return replace(found.select(rest), notes=(*found.notes, note))
    note = f"{len(held)} of {total} windows used for the test (evaluate.test_share = {share:g})"
    return replace(found.select(held), notes=(*found.notes, note))


def divided_index(found: Windows, share: float, overlaps: int) -> tuple[Index, Index, int]:
    """(training, test, number dropped): test is the last share of each class in each group.

    Args:
        overlaps: how many of the next windows of its group a window shares samples with.
    """
    labels = np.array(found.label_N or [""] * len(found.names))
    pairs = np.stack([np.unique(each, return_inverse=True)[1].reshape(-1) for each in (found.group_N, labels)])
    kind_N = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)
    rest, held = hold_out_last_index(kind_N, share)
    is_held_N = np.zeros(len(labels), bool)
    is_held_N[held] = True
    touched_N = np.zeros(len(labels), bool)
    for gap in range(1, overlaps + 1):
        same_N = found.group_N[gap:] == found.group_N[:-gap]
        touched_N[:-gap] |= is_held_N[gap:] & same_N
        touched_N[gap:] |= is_held_N[:-gap] & same_N
    kept = rest[~touched_N[rest]]
    return kept, held, len(rest) - len(kept)
