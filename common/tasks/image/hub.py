"""Images from Hugging Face datasets: an id on the hub, or a folder that `save_to_disk` wrote.

Called by `sources.py`; the library is imported only here and only when asked for. The one place where fednc may
reach out to the network for data, and only because the spec says so.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.tasks.image.files import decode, stack
from fednc.common.tasks.image.options import ImageOptions
from fednc.common.tasks.image.raw import Images, Purpose, map_labels, map_names


def read_hub(place: str, purpose: Purpose, options: ImageOptions) -> Images:
    """The split `train` or `test` of a dataset with an image and a label column; all of it where it has no splits.

    Raises:
        DataError: no such dataset, or not of that shape.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as e:
        raise MissingExtraError("datasets", "demo", "data `hf:`") from e
    source = f"hf:{place}"
    table = _split(_load(datasets, place), purpose, source)
    image, label = _image_column(datasets, table, source), _label_column(datasets, table, options, source)
    encoded = table.cast_column(image, datasets.Image(decode=False))[image]
    decoded = [
        decode(io.BytesIO(item["bytes"]) if item["bytes"] else Path(item["path"]), f"{source}: image {i}", options)
        for i, item in enumerate(encoded)
    ]
    if not decoded:
        raise DataError(f"{source}: no images in it")
    return Images(pixel_NCHW=stack(decoded), label_N=_labels(datasets, table, label, options, source))


def _load(datasets: Any, place: str) -> Any:
    saved = any((Path(place) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        return datasets.load_from_disk(place) if saved else datasets.load_dataset(place)
    except Exception as e:  # the network, the hub and the file system each raise kinds of their own
        raise DataError(f"hf:{place}: cannot be loaded: {e}") from e


def _split(loaded: Any, purpose: Purpose, source: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    for name in (purpose, "train"):
        if name in loaded:
            return loaded[name]
    raise DataError(f"{source}: has splits {', '.join(loaded)}, expected `train` and perhaps `test`")


def _image_column(datasets: Any, table: Any, source: str) -> str:
    columns = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise DataError(f"{source}: expected one image column, found {columns} among {list(table.features)}")
    return str(columns[0])


def _label_column(datasets: Any, table: Any, options: ImageOptions, source: str) -> str:
    """The class column that has most of the run's names (CIFAR-100 has a coarse and a fine one), else `label`."""
    classes = {name: kind.names for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    if classes:
        return str(max(classes, key=lambda name: len(set(classes[name]) & set(options.classes))))
    if "label" in table.features:
        return "label"
    raise DataError(f"{source}: no class column and none called `label` among {list(table.features)}")


def _labels(datasets: Any, table: Any, column: str, options: ImageOptions, source: str) -> torch.Tensor:
    values, kind = np.asarray(table[column]), table.features[column]
    if values.dtype.kind == "U":
        names, index = np.unique(values, return_inverse=True)
        return torch.from_numpy(map_names([str(name) for name in names], options, source)[index])
    found = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return map_labels(values, found, options, source)
