"""Reads windows that are already cut from an .npz file: floats, or integers with a scale for each channel.

Called by `select.py`. Windows are never cut again, since their author has chosen their length.

Legend: N windows, T samples of a window, C channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec
from fednc.common.tasks.row_choice import names_for, part_column
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources.windows import Array, Windows, refuse_holes

ROLES = frozenset({"signal", "label", "scale", "group"})
_READ = frozenset({"x_train", "y_train", "x_test", "y_test", "classes", "scale"})


def read_arrays(spec: DataSpec, purpose: Purpose, options: SignalOptions) -> Windows:
    """Read x_train and y_train, optionally x_test, y_test, `classes` and `scale`.

    `columns=signal=NAME,label=NAME` gives the arrays other names; then there is no test part.

    Raises:
        DataError: the file does not have this form, or windows of another shape than the run's.
    """
    arrays = load(spec)
    has_test = "signal" not in spec.columns and "x_test" in arrays
    part = "test" if purpose != "train" and has_test else "train"
    signal, label = (
        spec.columns.get(role, f"{letter}_{part}") for role, letter in (("signal", "x"), ("label", "y"))
    )
    window_NTC = _windows(_pick(arrays, signal, spec), signal, spec, options)
    count = len(window_NTC)
    if scale := _scale(arrays, spec, window_NTC):
        window_NTC = window_NTC * np.asarray(scale)
    window_NTC = np.ascontiguousarray(window_NTC, dtype=np.float32)
    refuse_holes(window_NTC, f"{spec.source}: {signal}", options.channels)
    wanted = part_column(arrays, part, spec)
    return Windows(
        window_NTC=window_NTC,
        label_N=_labels(arrays, label, count, spec, required=purpose != "input"),
        group_N=wanted(spec.columns["group"]) if "group" in spec.columns else np.zeros(count, np.int64),
        names=tuple(f"{spec.place}[{i}]" for i in range(count)),
        has_test=has_test,
        columns={name: wanted(name) for name in spec.only},
        notes=_unused(arrays, spec),
    )


def load(spec: DataSpec) -> dict[str, Array]:
    """The arrays by name; those that the spec does not use are empty. Raises DataError."""
    path = Path(spec.place).expanduser()
    if not path.is_file():
        raise DataError(f"{spec.source}: no such file")
    return npz_files.arrays_in(path, spec.source, _used(spec))


def class_names(arrays: dict[str, Array], spec: DataSpec) -> tuple[str, ...] | None:
    """The names of integer labels from 0: those given by the owner, else the array `classes`, else None."""
    if spec.class_names:
        return spec.class_names
    return npz_files.texts(arrays["classes"], f"{spec.source}: classes") if "classes" in arrays else None


def _windows(values: Array, name: str, spec: DataSpec, options: SignalOptions) -> Array:
    wanted = (options.window, len(options.channels))
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise DataError(
            f"{spec.source}: {name} is {values.dtype} {list(values.shape)}, expected numbers [N, T, C]: windows, "
            "samples, channels"
        )
    if values.shape[2] != wanted[1]:
        raise DataError(
            f"{spec.source}: {name} has {values.shape[2]} channels, but this run's windows have {wanted[1]} "
            f"({', '.join(options.channels)}; task.channels). Give the same channels in the same order."
        )
    if values.shape[1] != wanted[0]:
        raise DataError(
            f"{spec.source}: {name} has windows of {values.shape[1]} samples, but this run's have {wanted[0]} "
            "(task.window). Cut the recordings again, or give them as CSV files; those are cut as the run says."
        )
    return values


def _scale(arrays: dict[str, Array], spec: DataSpec, window_NTC: Array) -> list[float]:
    """What integers are multiplied by, for each channel; [] if the values are what they are."""
    name = spec.columns.get("scale", "scale")
    if "scale" in spec.columns or (window_NTC.dtype.kind in "iu" and name in arrays):
        values = np.atleast_1d(_pick(arrays, name, spec).astype(np.float64))
        if values.shape not in ((1,), (window_NTC.shape[2],)) or not np.isfinite(values).all():
            raise DataError(
                f"{spec.source}: {name} must be one finite number, or one for each of the "
                f"{window_NTC.shape[2]} channels"
            )
        return [float(value) for value in values]
    return []


def _labels(
    arrays: dict[str, Array], name: str, count: int, spec: DataSpec, *, required: bool
) -> tuple[str, ...] | None:
    if name not in arrays and not required:
        return None
    labels = _pick(arrays, name, spec)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iuUS":
        raise DataError(
            f"{spec.source}: {name} is {labels.dtype} {list(labels.shape)}, expected whole numbers or "
            f"names [{count}]"
        )
    if labels.dtype.kind in "US":
        return npz_files.texts(labels, f"{spec.source}: {name}")
    names = class_names(arrays, spec)
    if names is None:
        return tuple(map(str, labels.tolist()))
    if count and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{spec.source}: {name} has labels {labels.min()} to {labels.max()}, but the {len(names)} names "
            f"are for labels 0 to {len(names) - 1}: {', '.join(names)}"
        )
    return tuple(names[int(label)] for label in labels)


def _pick(arrays: dict[str, Array], name: str, spec: DataSpec) -> Array:
    if name not in arrays:
        raise DataError(f"{spec.source}: has no array {name!r}, only {', '.join(sorted(arrays)) or 'nothing'}")
    return arrays[name]


def _used(spec: DataSpec) -> set[str]:
    return {*_READ, *spec.columns.values(), *names_for(spec)}


def _unused(arrays: dict[str, Array], spec: DataSpec) -> tuple[str, ...]:
    names = sorted(set(arrays) - _used(spec))
    return (f"left out: {len(names)} arrays with other names ({', '.join(names[:10])})",) if names else ()
