"""What every dense task does with its data: read a spec, divide it over clients, pack it for comparisons.

Called by dense tasks. Must not know which task it is.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from fednc.common.config.tables import SplitSection
from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.splits import Index, split_index
from fednc.tasks.dense.dataset import DenseData, unknown_map
from fednc.tasks.dense.maps import LABEL
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.sources import select


class DenseSplit(SplitSection):
    """`[split]` of dense tasks. Labels are skewed by the rarest class of each picture."""

    by_site: bool = Field(False, description="part i has the pictures of site i, in the order of the sites' names")


def read_data(
    spec: str,
    purpose: Purpose,
    options: DenseOptions,
    label_space: int,
    wanted: tuple[str, ...] = (LABEL,),
    *,
    some: bool = False,
) -> DenseData:
    """The pictures at `spec` with the maps in `wanted`, or with `some` of them; those to predict on may have none.

    Raises:
        DataError: they are missing, unreadable, or do not have this run's classes and size, or lack a map.
    """
    found = select.read_input(spec, options) if purpose == "input" else select.read(spec, purpose, options)
    missing = [kind for kind in wanted if kind not in found.maps]
    if missing and purpose != "input" and not (some and len(missing) < len(wanted)):
        what = f"{missing[0]} map, which" if len(wanted) == 1 or not some else f"map of {', '.join(wanted)}, which"
        raise DataError(
            f"{spec}: its pictures have no {what} this run trains and tests with. It has "
            f"{', '.join(sorted(found.maps)) or 'none'}; docs/segmentation.md says where each map belongs."
        )
    data = DenseData(
        pixel_NCHW=found.pixel_NCHW,
        maps={kind: value for kind, value in found.maps.items() if kind in wanted},
        wanted=wanted,
        label_space=label_space,
        mean_C11=torch.tensor(options.mean)[:, None, None],
        std_C11=torch.tensor(options.std)[:, None, None],
        memory_pixels=options.memory_pixels,
        crop=options.crop_size if purpose == "train" else None,
        flip=options.flip and purpose == "train",
        sites=found.sites,
        names=found.names,
        whole=found.whole if purpose == "input" else (),
        notes=found.notes,
    )
    return data.with_notes(_classes_without_pixels(data, options)) if LABEL in data.maps else data


def _classes_without_pixels(data: DenseData, options: DenseOptions) -> tuple[str, ...]:
    having = data.having_K.tolist()
    missing = [name for name, count in zip(options.classes, having, strict=False) if not count]
    listed = ", ".join(map(repr, missing[:20]))
    return (f"no pixel of {len(missing)} of the run's classes: {listed}",) if missing else ()


def parts_of(data: DenseData, split: SplitSection) -> list[Index]:
    """The pictures of each part of a simulated split. Raises DataError."""
    if not (isinstance(split, DenseSplit) and split.by_site):
        return split_index(data.rarest_N, split)
    places = sorted(set(data.sites))
    if len(places) != split.parts:
        raise DataError(
            f"split.by_site: the pictures have {len(places)} sites ({', '.join(places) or 'none'}), but "
            f"split.parts = {split.parts}. Set split.parts to {max(1, len(places))}, or by_site = false."
        )
    return [np.flatnonzero(np.array([site == place for site in data.sites])) for place in places]


def packed(train: DenseData, test: DenseData, class_names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Pictures, maps, sites and class names as arrays that the reader of `npz:` takes."""
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array(class_names)}
    for part, data in (("train", train), ("test", test)):
        arrays[f"x_{part}"] = np.ascontiguousarray(data.pixel_NCHW.numpy().transpose(0, 2, 3, 1))
        for kind in data.wanted:
            value = data.maps.get(kind)
            if value is None:  # other clients may have it, and their arrays are put behind these
                value = unknown_map(kind, (data.examples, *data.pixel_NCHW.shape[2:]))
            arrays[f"{'y' if kind == LABEL else kind}_{part}"] = value.numpy()
        if data.sites:
            arrays[f"site_{part}"] = np.array(data.sites)
    return arrays
