"""Finds recordings in CSV or parquet files, labels them, and cuts them into windows.

Called by `select.py`. The label of a recording is the name of its folder, or is in a file `labels.csv` beside it,
or each sample has one in a column. Hidden files are ignored; everything else that is not used is counted and said.

Legend: N windows, L samples of a recording, T samples of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources.tables import Table, numbers, read_table
from fednc.tasks.signal.sources.windows import Array, Windows, cut, refuse_holes, unused_samples

ROLES = frozenset({"label", "recording"})
LABELS_FILE = "labels.csv"
_PARTS = ("train", "test")


@dataclass(frozen=True)
class Recording:
    """A file, or a part of one: where it is, and what is known of all of its samples."""

    path: Path
    label: str | None
    more: dict[str, str] = field(default_factory=dict)


@dataclass
class _Cut:
    """What has been cut so far."""

    windows: list[Array] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)
    recordings: int = 0
    unused: int = 0
    too_short: list[str] = field(default_factory=list)
    mixed: int = 0


def read_recordings(spec: DataSpec, purpose: Purpose, options: SignalOptions) -> Windows:
    """Cut every recording at `spec` into windows.

    Raises:
        DataError: there are no recordings, one lacks a channel or has a gap, or there are no labels to train with.
    """
    files, has_test = find_files(spec, purpose)
    found = _Cut(columns={name: [] for name in spec.only})
    for recording in files:
        _cut_file(recording, spec, options, found)
    if not found.windows:
        raise DataError(
            f"{spec.source}: all {len(found.too_short)} recordings are shorter than a window of {options.window} "
            f"samples (task.window); the first is {found.too_short[0]}"
            if found.too_short
            else f"{spec.source}: no window has one label alone"
        )
    labels = [label for label in found.labels if label is not None]
    if len(labels) < len(found.labels) and purpose != "input":
        raise DataError(
            f"{spec.source}: {len(found.labels) - len(labels)} windows have no label. Put each recording into a "
            f"folder named like its class, or write {LABELS_FILE} with the columns file and label, or name the "
            "column that has the label of each sample: ?columns=label=NAME"
        )
    return Windows(
        window_NTC=np.concatenate(found.windows).astype(np.float32),
        label_N=tuple(labels) if len(labels) == len(found.labels) else None,
        group_N=np.array(found.groups, np.int64),
        names=tuple(found.names),
        has_test=has_test,
        columns={name: np.array(values) for name, values in found.columns.items()},
        notes=_notes(found, options, spec, files),
    )


def find_files(spec: DataSpec, purpose: Purpose) -> tuple[list[Recording], bool]:
    """(recordings for `purpose`, whether the data has a test part). Raises DataError if there are none."""
    root, suffix = Path(spec.place).expanduser(), f".{spec.kind}"
    if root.is_file():
        return [Recording(root, None)], False
    if not root.is_dir():
        raise DataError(f"{spec.source}: no such file or folder")
    parts = {name: root / name for name in _PARTS if (root / name).is_dir()}
    used = parts.get("train" if purpose == "train" else "test", parts.get("train", root))
    files = list(_listed(used, suffix))
    if not files:
        raise DataError(f"{spec.source}: no {suffix} files in {used}, nor in folders inside it")
    return files, "test" in parts


def _listed(root: Path, suffix: str) -> Iterator[Recording]:
    listed = root / LABELS_FILE
    if listed.is_file():
        yield from _from_labels_file(listed)
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if _is_recording(file, suffix))
            yield from (Recording(file, path.name) for file in inside)
        elif _is_recording(path, suffix):
            yield Recording(path, None)


def _is_recording(path: Path, suffix: str) -> bool:
    return path.is_file() and path.suffix.lower() == suffix and not path.name.startswith(".")


def _from_labels_file(path: Path) -> Iterator[Recording]:
    """One recording for each line: its file, its label, and other columns that `only` may choose by."""
    _, head = read_table(path, ())
    table, _ = read_table(path, head)
    if not {"file", "label"} <= set(head):
        raise DataError(f"{path}: needs the columns file and label; it has {', '.join(head)}")
    for place, name in enumerate(table["file"].tolist()):
        file = path.parent / name
        if not file.is_file():
            raise DataError(f"{path}: row {place + 1} names {name!r}, and there is no such file beside it")
        more = {column: str(table[column][place]) for column in head if column not in ("file", "label")}
        yield Recording(file, str(table["label"][place]), more)


def _cut_file(recording: Recording, spec: DataSpec, options: SignalOptions, found: _Cut) -> None:
    path = recording.path
    in_file = [name for name in spec.only if name not in recording.more]
    wanted = [*options.channels, *spec.columns.values(), *in_file]
    table, head = read_table(path, wanted)
    _refuse_missing(table, head, options, spec, in_file, path)
    signal_LC = numbers(table, options.channels, path)
    refuse_holes(signal_LC, str(path), options.channels)
    for start, end in _runs(table, spec):
        _cut_run(recording, signal_LC, table, (start, end), spec, options, found)


def _refuse_missing(
    table: Table, head: tuple[str, ...], options: SignalOptions, spec: DataSpec, in_file: list[str], path: Path
) -> None:
    has = f"it has {', '.join(head)}"
    if missing := [name for name in options.channels if name not in table]:
        raise DataError(f"{path}: has no column {missing[0]!r} for a channel of the run (task.channels); {has}")
    if missing := [name for name in spec.columns.values() if name not in table]:
        raise DataError(f"{path}: has no column {missing[0]!r}, which the data spec names; {has}")
    if missing := [name for name in in_file if name not in table]:
        raise DataError(
            f"{path}: has no column {missing[0]!r} for `only`, and {LABELS_FILE} has none beside it; {has}"
        )


def _runs(table: Table, spec: DataSpec) -> Iterator[tuple[int, int]]:
    """(start, end) of each recording in a file: rows that follow each other with one value of its column."""
    length = len(next(iter(table.values())))
    if "recording" not in spec.columns:
        yield 0, length
        return
    value_L = table[spec.columns["recording"]]
    edges = [0, *(np.flatnonzero(value_L[1:] != value_L[:-1]) + 1).tolist(), length]
    yield from pairwise(edges)


def _cut_run(
    recording: Recording,
    signal_LC: Array,
    table: Table,
    run: tuple[int, int],
    spec: DataSpec,
    options: SignalOptions,
    found: _Cut,
) -> None:
    start, end = run
    window, step = options.window, options.step
    name = str(recording.path) if end - start == len(signal_LC) else f"{recording.path} from row {start + 1}"
    window_NTC = cut(signal_LC[start:end], window, step)
    if not len(window_NTC):
        found.too_short.append(name)
        return
    keep_N, one_label = _one_value(table, spec.columns.get("label"), run, options)
    found.mixed += int((~keep_N).sum())
    in_file = {
        column: _one_value(table, column, run, options) for column in spec.only if column not in recording.more
    }
    for kept, _ in in_file.values():
        keep_N = keep_N & kept
    place_N = np.flatnonzero(keep_N)
    found.windows.append(window_NTC[place_N])
    found.labels += [str(one_label[i]) if one_label is not None else recording.label for i in place_N]
    found.groups += [found.recordings] * len(place_N)
    found.names += [f"{recording.path}[{start + step * i}:{start + step * i + window}]" for i in place_N]
    for column, values in found.columns.items():
        of_file = in_file.get(column, (keep_N, None))[1]
        values += [recording.more[column] if of_file is None else str(of_file[i]) for i in place_N]
    found.recordings += 1
    found.unused += unused_samples(end - start, window, step)


def _one_value(
    table: Table, column: str | None, run: tuple[int, int], options: SignalOptions
) -> tuple[Array, Array | None]:
    """(whether a window has one value alone in a column, the value at its start); all of them without a column."""
    start, end = run
    count = (end - start - options.window) // options.step + 1
    if column is None:
        return np.ones(count, bool), None
    value_NT = cut(table[column][start:end], options.window, options.step)
    return (value_NT == value_NT[:, :1]).all(axis=1), value_NT[:, 0]


def _notes(found: _Cut, options: SignalOptions, spec: DataSpec, files: list[Recording]) -> tuple[str, ...]:
    windows = sum(map(len, found.windows))
    notes = [
        f"{found.recordings} recordings were cut into {windows} windows of {options.window} samples, one every "
        f"{options.step}; {found.unused} samples are in no window"
    ]
    if found.too_short:
        notes.append(
            f"left out: {len(found.too_short)} recordings shorter than a window (first: {found.too_short[0]})"
        )
    if found.mixed:
        notes.append(f"left out: {found.mixed} windows in which {spec.columns['label']!r} changes")
    root = Path(spec.place).expanduser()
    if root.is_dir() and (others := _other_files(root, {file.path for file in files})):
        notes.append(
            f"left out: {len(others)} files that are not {spec.kind} recordings (first: {others[0].name})"
        )
    return tuple(notes)


def _other_files(root: Path, used: set[Path]) -> list[Path]:
    """Files in the folder and in the folders inside it that are no recordings, and not hidden."""
    parts = [root / name for name in _PARTS if (root / name).is_dir()]
    searched = [root, *(path for path in sorted(root.iterdir()) if path.is_dir() and path not in parts)]
    return [
        path
        for folder in searched
        for path in sorted(folder.iterdir())
        if path.is_file() and path not in used and not path.name.startswith(".") and path.name != LABELS_FILE
    ]
