"""Suggests `[task]` keys that fit given data: class names, channels, length of a window.

`fednc init` calls it through the task, before there is a run file; later only the run file counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.api import Suggestion
from fednc.common.tasks.data_spec import DataSpec
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources import arrays, recordings
from fednc.tasks.signal.sources.select import parse_data, read
from fednc.tasks.signal.sources.tables import Table, numbers, read_table

_MOST_CLASSES = 1024
_WINDOW = 128  # samples; the owner may choose another length


def suggest(text: str) -> Suggestion:
    """Keys of `[task]` for the training data at `text`. Raises DataError if it cannot be used."""
    spec = parse_data(text)
    options = _of_arrays(spec) if spec.kind == "npz" else _of_recordings(spec)
    if not 1 <= len(options["classes"]) <= _MOST_CLASSES:
        raise DataError(f"{spec.source}: {len(options['classes'])} different labels; are they measurements?")
    found = read(text, "train", SignalOptions.model_validate(options))  # refuses what a client would refuse
    if spec.kind == "npz":
        notes = ("an .npz has no names of channels: give them real ones in task.channels",)
    else:
        notes = ("task.window is a guess: choose one that holds what tells the classes apart",)
    return Suggestion(options, (*found.notes, *notes))


def _of_arrays(spec: DataSpec) -> dict[str, Any]:
    found = arrays.load(spec)
    signal, label = spec.columns.get("signal", "x_train"), spec.columns.get("label", "y_train")
    for name in (signal, label):
        if name not in found:
            raise DataError(f"{spec.source}: has no array {name!r}, only {', '.join(sorted(found)) or 'nothing'}")
    values = found[signal]
    if values.ndim != 3:
        raise DataError(f"{spec.source}: {signal} has shape {list(values.shape)}, expected [N, T, C]")
    used, names = np.unique(found[label]), arrays.class_names(found, spec)
    classes = [str(name) for name in used]
    if names is not None and used.dtype.kind in "iu":
        classes = [names[int(label)] for label in used if 0 <= label < len(names)]
    channels = [f"channel {number}" for number in range(1, values.shape[2] + 1)]
    return {"classes": classes, "channels": channels, "window": values.shape[1]}


def _of_recordings(spec: DataSpec) -> dict[str, Any]:
    files, _ = recordings.find_files(spec, "train")
    label = spec.columns.get("label")
    _, head = read_table(files[0].path, ())
    others = {*spec.columns.values(), *spec.only}
    table, _ = read_table(files[0].path, head)
    channels = [name for name in head if name not in others and _is_numeric(table, name)]
    if not channels:
        raise DataError(f"{files[0].path}: no column of numbers for a channel; it has {', '.join(head)}")
    classes = {file.label for file in files if file.label is not None}
    if label is not None:
        classes = {str(value) for file in files for value in read_table(file.path, [label])[0].get(label, ())}
    length = min(len(next(iter(read_table(file.path, channels[:1])[0].values()))) for file in files)
    return {"classes": sorted(classes), "channels": channels, "window": max(8, min(_WINDOW, length))}


def _is_numeric(table: Table, name: str) -> bool:
    try:
        numbers(table, [name], Path(name))
    except DataError:
        return False
    return True
