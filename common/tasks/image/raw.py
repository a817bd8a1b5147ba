"""What every source gives, and how its class names become the run's.

Used by the readers (`arrays.py`, `files.py`, `hub.py`) and by `sources.py`, which chooses among them. Labels are
mapped by name, never by position, so two clients may store their classes in any order.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.image.data import UNLABELLED, Index
from fednc.common.tasks.image.options import ImageOptions

Purpose = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """What a source gives.

    Attributes:
        pixel_NCHW: uint8 in 0..255 or float32 in 0..1.
        label_N: int64 positions in the run's `classes`; -1 where there is no label.
        names: where each image came from; empty where that is not worth telling.
    """

    pixel_NCHW: Tensor
    label_N: Tensor
    names: tuple[str, ...] = ()


def map_names(found: Sequence[str], options: ImageOptions, source: str) -> Index:
    """For each of the data's class names its position in the run's `classes`.

    Raises:
        DataError: names that the run does not have; lists both sides.
    """
    unknown = sorted(set(found) - set(options.classes))
    if unknown and not options.takes_unknown:
        raise DataError(
            f"{source}: classes {_quoted(unknown)} are not in this run. The data has "
            f"{_quoted(sorted(set(found)))}; the run has {_quoted(options.classes)}. "
            "Rename or remove them in the data, or use another run file."
        )
    place = {name: i for i, name in enumerate(options.classes)}
    return np.array([place.get(name, UNLABELLED) for name in found], dtype=np.int64)


def map_labels(
    labels: np.ndarray[Any, Any], found: Sequence[str] | None, options: ImageOptions, source: str
) -> Tensor:
    """int64 [N]: integer labels as positions in the run's `classes`.

    Args:
        found: the data's own class names, which its labels count; only those in use need to be the run's. None:
            the labels count the run's classes.

    Raises:
        DataError: labels that are no integers, or outside the class list.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{source}: labels are {labels.dtype} {list(labels.shape)}, expected integers [N]")
    names = options.classes if found is None else found
    outside = labels[(labels < 0) | (labels >= len(names))]
    if len(outside):
        whose = "the run has" if found is None else "its own list has"
        raise DataError(
            f"{source}: label {outside[0]} is outside 0..{len(names) - 1}: {whose} {len(names)} classes "
            f"({_quoted(names)}). Correct the labels or the list."
        )
    if found is None:
        return torch.from_numpy(labels.astype(np.int64))
    used = np.unique(labels)
    position = np.full(len(names), UNLABELLED, dtype=np.int64)
    position[used] = map_names([str(names[i]) for i in used], options, source)
    return torch.from_numpy(position[labels])


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(str(name)) for name in names)
