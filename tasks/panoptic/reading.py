"""Data specs of the panoptic task: those of dense tasks, `streets:`, `coco:PATH` and `partids:PATH`.

Called by the task. Chooses the reader, checks that parts belong to their classes, and builds the data set.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.tasks.dense.maps import INSTANCE, LABEL, MAPS, NO_INSTANCE, PART, VOID
from fednc.tasks.dense.sources import select
from fednc.tasks.dense.sources.pictures import Pictures
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.dataset import WANTED, PanopticData
from fednc.tasks.panoptic.options import PanopticOptions
from fednc.tasks.panoptic.sources import coco, generated, part_ids

OWN: select.Readers = {
    "streets": generated.read_streets,
    "coco": coco.read_coco,
    "partids": part_ids.read_part_ids,
}
_UNKNOWN = {LABEL: VOID, INSTANCE: NO_INSTANCE, PART: VOID}


def read_data(spec: str, purpose: Purpose, options: PanopticOptions, columns: Columns) -> PanopticData:
    """The pictures at `spec`. Without part maps all parts are unknown; those to predict on may have no maps.

    Raises:
        DataError: they are missing, unreadable, or do not have this run's classes, parts and size.
    """
    if purpose == "input":
        found = select.read_input(spec, options, OWN)
    else:
        found = select.read(spec, purpose, options, OWN)
        _check(found, spec, options, columns)
    data = PanopticData(
        pixel_NCHW=found.pixel_NCHW,
        maps=filled(found.maps, found.pixel_NCHW),
        label_space=columns.space,
        layout=columns,
        mean_C11=torch.tensor(options.mean)[:, None, None],
        std_C11=torch.tensor(options.std)[:, None, None],
        crop=options.crop_size if purpose == "train" else None,
        flip=options.flip and purpose == "train",
        sites=found.sites,
        names=found.names,
        whole=found.whole if purpose == "input" else (),
        notes=found.notes,
    )
    if purpose == "input":
        return data
    if not data.count_K.any():
        raise DataError(
            f"{spec}: not one pixel can be trained or tested with: all are void, or things without an instance "
            "(crowds). Give pictures with labels of this run's classes (docs/panoptic.md)."
        )
    told = (f"{data.with_parts} of {data.examples} pictures have part labels",) if columns.parts else ()
    return data.with_notes((*told, *_missing(data)))  # type: ignore[return-value]


def _missing(data: PanopticData) -> tuple[str, ...]:
    """A note on what no picture has; of parts only where some are labelled."""
    layout = data.layout
    counted = layout.no_object if data.with_parts else len(layout.classes)
    pairs = zip(layout.names[:counted], data.having_K.tolist(), strict=False)
    missing = [name for name, pictures in pairs if not pictures]
    listed = ", ".join(map(repr, missing[:20]))
    return (f"no picture has {len(missing)} of the run's classes and parts: {listed}",) if missing else ()


def filled(maps: Mapping[str, Tensor], pixel_NCHW: Tensor) -> dict[str, Tensor]:
    """All wanted maps; unknown where the source has none."""
    size = (len(pixel_NCHW), *pixel_NCHW.shape[2:])
    return {
        kind: maps[kind] if kind in maps else torch.full(size, _UNKNOWN[kind], dtype=MAPS[kind].dtype)
        for kind in WANTED
    }


def _check(found: Pictures, spec: str, options: PanopticOptions, columns: Columns) -> None:
    missing = [kind for kind in (LABEL, INSTANCE) if kind not in found.maps]
    if missing:
        raise DataError(
            f"{spec}: its pictures have no {missing[0]} map, which this run trains and tests with "
            "(docs/panoptic.md says which files a data set has)"
        )
    if PART not in found.maps:
        return
    label_NHW, part_NHW = found.maps[LABEL].long(), found.maps[PART].long()
    most_V = torch.zeros(VOID + 1, dtype=torch.int64)
    most_V[VOID] = VOID
    for label, values in columns.part_ids.items():
        most_V[label] = len(values)
    wrong_NHW = (part_NHW > most_V[label_NHW]) & (part_NHW != VOID)
    if wrong_NHW.any():
        number, row, column = (int(each) for each in wrong_NHW.nonzero()[0])
        whole = options.classes[int(label_NHW[number, row, column])]
        has = f"has the parts 1 to {len(options.parts[whole])}" if whole in options.parts else "has no parts"
        where = found.names[number] if found.names else f"picture {number}"
        raise DataError(
            f"{spec}: part value {int(part_NHW[number, row, column])} of class {whole!r} in {where}, row "
            f"{row}, column "
            f"{column}; in this run {whole!r} {has} (task.parts). Correct the part map, or name its parts."
        )
