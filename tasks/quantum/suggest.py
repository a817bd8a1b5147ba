"""Suggests `[task]` keys that fit given data: classes, kind of inputs, encoding.

`fednc init` calls it through the task, before there is a run file; later only the run file counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Suggestion
from fednc.common.tasks.data_spec import parse_spec
from fednc.tasks.quantum import sources
from fednc.tasks.quantum.options import MOST_QUBITS
from fednc.tasks.vision.suggest import suggest as of_images

_IMAGE_SIZE = 8  # pixels; 64 amplitudes are 6 qubits
_TABLES: dict[str, dict[str, Any]] = {
    "train": {"optimizer": "adam", "lr": 0.05, "epochs": 5},
    "method": {"name": "fedavg"},
}


def suggest(text: str) -> Suggestion:
    """Keys of `[task]` for the training data at `text`. Raises DataError."""
    spec = parse_spec(text)
    if spec.kind == sources.PARITY:
        length = sources.length_of(spec)
        return Suggestion(
            {"classes": list(sources.CLASSES), "values": length, "encoding": "basis"}, tables=_TABLES
        )
    if spec.kind == "npz" and (found := _of_rows(Path(spec.place).expanduser(), text)):
        return found
    classes = of_images(text).options["classes"]
    options = {"classes": classes, "size": _IMAGE_SIZE, "encoding": "amplitude", "layers": 10}
    return Suggestion(options, ("images become grey and small: choose task.size and task.layers",), tables=_TABLES)


def _of_rows(path: Path, text: str) -> Suggestion | None:
    """Keys for rows of numbers; None if the arrays are images."""
    found = npz_files.arrays_in(path, text, {"x_train", "y_train", "classes"})
    value, label = found.get("x_train"), found.get("y_train")
    if value is None or label is None or value.ndim != 2 or value.dtype.kind not in "biuf":
        return None
    classes = found.get("classes", np.unique(label))
    named = npz_files.texts(classes, f"{text}: classes")
    is_binary = bool(np.isin(value, (0, 1)).all()) and value.shape[1] <= MOST_QUBITS
    encoding = "basis" if is_binary else "angle" if value.shape[1] <= MOST_QUBITS else "amplitude"
    options = {"classes": list(named), "values": value.shape[1], "encoding": encoding}
    return Suggestion(options, tables=_TABLES)
