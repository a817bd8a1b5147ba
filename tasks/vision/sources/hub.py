"""Reads images from Hugging Face datasets: an id on the hub, or a folder that `save_to_disk` wrote.

Called by `select.py`. The library is imported only here, and only when needed. This is the only place where fednc
may use the network to get data, and only if the spec says so.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks.data_spec import DataSpec
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources.files import Pixels, decode, decode_all, stack
from fednc.tasks.vision.sources.folders import as_path
from fednc.tasks.vision.sources.images import Images, Purpose
from fednc.tasks.vision.sources.labels import comparable, map_labels, quoted, refuse_twins

LABEL_COLUMNS = ("label", "labels")  # used if no column has a list of class names


def read_hub(spec: DataSpec, purpose: Purpose, options: ImageOptions) -> Images:
    """The split `train` or `test` of a dataset with an image and a label column; all of it if it has no splits.

    Raises:
        DataError: the dataset does not exist, or does not have this form.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as e:
        raise MissingExtraError("datasets", "demo", "data `hf:`") from e
    table, has_test = _split(_load(datasets, spec), purpose, spec.source)
    image, label = _image_column(datasets, table, spec), _label_column(datasets, table, options, spec)
    if len(table) == 0:
        raise DataError(f"{spec.source}: no images in it")
    found = _label_names(datasets, table, label, spec)
    label_N = _labels(table, label, found, options, spec)
    decoded = decode_all(_decoders(datasets, table, image, spec, options), spec.source)
    notes = (f"images from column {image!r}, labels from column {label!r}",)
    pixel_NCHW = stack(decoded)
    return Images(
        pixel_NCHW=pixel_NCHW, label_N=label_N, has_test=has_test, notes=notes, label_names=tuple(found or ())
    )


def _decoders(
    datasets: Any, table: Any, column: str, spec: DataSpec, options: ImageOptions
) -> list[Callable[[], Pixels]]:
    try:
        encoded = table.cast_column(column, datasets.Image(decode=False))[column]
    except Exception as e:  # any error of the library means the same here
        raise DataError(f"{spec.source}: column {column!r} does not contain images: {e}") from e
    return [
        partial(_decode, item, f"{spec.source}: image {i} of column {column!r}", options)
        for i, item in enumerate(encoded)
    ]


def _decode(item: dict[str, Any] | None, name: str, options: ImageOptions) -> Pixels:
    if item and item["bytes"]:
        return decode(io.BytesIO(item["bytes"]), name, options)
    if item and item["path"]:
        return decode(Path(item["path"]), name, options)
    raise DataError(f"{name} is missing (None or empty). Remove that row.")


def _load(datasets: Any, spec: DataSpec) -> Any:
    local = as_path(spec.place)
    place = str(local) if local.exists() else spec.place
    saved = any((local / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        return datasets.load_from_disk(place) if saved else datasets.load_dataset(place)
    except Exception as e:  # the network, the hub and the file system raise different kinds of errors
        raise DataError(f"{spec.source}: cannot be loaded: {e}") from e


def _split(loaded: Any, purpose: Purpose, source: str) -> tuple[Any, bool]:
    """(the table, whether there is a test split)."""
    if not isinstance(loaded, dict):
        return loaded, False
    for name in (purpose, "train"):
        if name in loaded:
            return loaded[name], "test" in loaded
    raise DataError(f"{source}: has splits {', '.join(loaded)}, expected `train` and optionally `test`")


def _image_column(datasets: Any, table: Any, spec: DataSpec) -> str:
    if "image" in spec.columns:
        return _there(table, spec.columns["image"], spec)
    columns = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise _ambiguous("image", columns, table, spec)
    return str(columns[0])


def _label_column(datasets: Any, table: Any, options: ImageOptions, spec: DataSpec) -> str:
    """The column that the owner names, else the only possible one.

    If several columns have lists of class names (CIFAR-100 has a coarse and a fine one), it is the one whose names
    are all in the run. Without such lists it is a column called `label`, else the only text column.
    """
    if "label" in spec.columns:
        return _there(table, spec.columns["label"], spec)
    features = table.features.items()
    listed = {name: kind.names for name, kind in features if isinstance(kind, datasets.ClassLabel)}
    ours = {comparable(name) for name in options.classes}
    fitting = [column for column, names in listed.items() if {comparable(name) for name in names} <= ours]
    texts = [name for name, kind in features if getattr(kind, "dtype", "") in ("string", "large_string")]
    called = [name for name in LABEL_COLUMNS if name in table.features]
    choices = (list(listed) if len(listed) == 1 else fitting or list(listed)) or called or texts
    if len(choices) != 1:
        raise _ambiguous("label", choices, table, spec)
    return choices[0]


def _there(table: Any, column: str, spec: DataSpec) -> str:
    if column not in table.features:
        raise DataError(f"{spec.source}: has no column {column!r}, only {quoted(list(table.features))}")
    return column


def _ambiguous(role: str, choices: list[str], table: Any, spec: DataSpec) -> DataError:
    found = f"{len(choices)} columns are possible ({quoted(choices)})" if choices else "none is obvious"
    names = list(table.features)
    return DataError(
        f"{spec.source}: which column is the {role}? {found} among {quoted(names)}. Choose one with "
        f"--columns {role}=NAME, or ?columns={role}=NAME after the data spec."
    )


def _label_names(datasets: Any, table: Any, column: str, spec: DataSpec) -> list[str] | None:
    """The names of integer labels: those given by the owner, else those of the column; None if there are none."""
    kind = table.features[column]
    found = list(spec.class_names) or (kind.names if isinstance(kind, datasets.ClassLabel) else None)
    if found:
        refuse_twins(found, f"{spec.source}: column {column!r}")
    return found


def _labels(
    table: Any, column: str, found: list[str] | None, options: ImageOptions, spec: DataSpec
) -> torch.Tensor:
    values = table[column]
    source = f"{spec.source}: column {column!r}"
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise DataError(f"{source}: {len(missing)} rows have no label (None), the first is row {missing[0]}")
    try:
        labels = np.asarray(values)
    except ValueError as e:  # rows have different lengths
        raise DataError(f"{source}: does not contain one label per row: {e}") from e
    return map_labels(labels, found, options, source)
