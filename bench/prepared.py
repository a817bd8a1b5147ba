"""The data of a comparison as two .npz files: one to tune on, one to report on. Nothing of the test part tunes.

Called by `compare.py` once; rows read the files. They lie beside the results, where git ignores them.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.bench.plan import Comparison
from fednc.common.config import parse_run
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.common.tasks.image import sources
from fednc.common.tasks.image.data import hold_out_index
from fednc.common.tasks.image.options import ImageOptions
from fednc.common.tasks.image.raw import Images, Purpose
from fednc.common.tasks.image.task import ImageTask

_SUBSET_SEED = 0  # which examples of a larger data set: the same for every comparison


@dataclass(frozen=True)
class Prepared:
    """A file of arrays x_train, y_train, x_test, y_test, classes, and the sha256 of them all."""

    path: Path
    sha256: str


def prepare(plan: Comparison, places: dict[str, str], folder: Path) -> tuple[Prepared, Prepared]:
    """(to tune on, to report on): training part less a validation share, and that share; training and test part.

    Args:
        places: paths by name, for `data.source`.
        folder: where the files go, named after what they hold.

    Raises:
        ConfigError: `data.source` names a place that is not in `places`.
        DataError: missing, unreadable or unfit data.
    """
    options = ImageTask(parse_run(plan.run, source=plan.name)).options
    spec = _spec(plan.data.source, places)
    train = _part(spec, "train", options, plan.data.train_examples)
    test = _part(spec, "test", options, plan.data.test_examples)
    rest, held = hold_out_index(train.label_N.numpy(), plan.tuning.val_share, plan.tuning.seed)
    tuning = _write(_select(train, rest), _select(train, held), options, folder)
    return tuning, _write(train, test, options, folder)


def _spec(source: str, places: dict[str, str]) -> str:
    try:
        return source.format_map(places)
    except KeyError as e:
        raise ConfigError(f"data.source {source!r} needs a path: add --data {e.args[0]}=PATH") from e


def _part(spec: str, purpose: Purpose, options: ImageOptions, wanted: int) -> Images:
    images = sources.read(spec, purpose, options)
    examples = len(images.label_N)
    if wanted > examples:
        raise ConfigError(f"{spec} has {examples} {purpose} examples, the comparison wants {wanted}")
    if wanted in (0, examples):
        return images
    return _select(images, hold_out_index(images.label_N.numpy(), wanted / examples, _SUBSET_SEED)[1])


def _select(images: Images, index: np.ndarray) -> Images:
    rows = torch.from_numpy(index)
    return Images(pixel_NCHW=images.pixel_NCHW[rows], label_N=images.label_N[rows])


def _write(train: Images, test: Images, options: ImageOptions, folder: Path) -> Prepared:
    arrays: dict[str, Any] = {
        "x_train": _as_stored(train), "y_train": train.label_N.numpy(),
        "x_test": _as_stored(test), "y_test": test.label_N.numpy(), "classes": np.array(options.classes),
    }  # fmt: skip
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    path = folder / f"data-{found.hexdigest()[:16]}.npz"
    if not path.exists():
        file = io.BytesIO()
        np.savez(file, **arrays)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
    return Prepared(path, found.hexdigest())


def _as_stored(images: Images) -> np.ndarray:
    pixel_NHWC = images.pixel_NCHW.numpy().transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixel_NHWC[..., 0] if pixel_NHWC.shape[3] == 1 else pixel_NHWC)
