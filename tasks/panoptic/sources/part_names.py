"""Maps the part values of a source to those of the run: by name, never by position.

Used by readers that know names of parts.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import VOID
from fednc.tasks.panoptic.options import PanopticOptions

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def part_values(
    label_HW: np.ndarray[Any, Any],
    part_HW: np.ndarray[Any, Any],
    classes: Sequence[str],
    names: Mapping[int, Sequence[str]],
    options: PanopticOptions,
    source: str,
) -> Bytes:
    """uint8 [H, W]: 0 outside parts, the part's place among those of its class from 1 on, VOID if unlabelled.

    Args:
        label_HW: values of the source.
        part_HW: values of the source; 0: not labelled.
        classes: names of the label values.
        names: by label value, the names of the part values from 1 on.
        source: the file of the parts, for messages.

    Raises:
        DataError: a part of a class without parts, or a part that is not one of the run's.
    """
    found: Bytes = np.zeros(part_HW.shape, np.uint8)
    pairs = np.unique(np.stack([label_HW.ravel(), part_HW.ravel()]), axis=1).T.tolist()
    for label, part in pairs:
        whole = classes[label] if label < len(classes) else ""
        if whole in options.parts:
            value = VOID if part in (0, VOID) else _place(whole, part, names.get(label, ()), options, source)
            found[(label_HW == label) & (part_HW == part)] = value
        elif part not in (0, VOID) and whole in options.classes:
            raise DataError(
                f"{source}: part value {part} of class {whole!r}, which has no parts in this run. Name its "
                f"parts in task.parts ({whole} = [...]), or set the pixels to 0 in the part labels."
            )
    return found


def _place(whole: str, part: int, own: Sequence[str], options: PanopticOptions, source: str) -> int:
    if not 1 <= part <= len(own):
        raise DataError(f"{source}: class {whole!r} has no part {part} in the list of names of this source")
    name = own[part - 1]
    if not name:
        raise DataError(f"{source}: part {part} of class {whole!r} has no name in the list of this source")
    if name not in options.parts[whole]:
        raise DataError(
            f"{source}: part {name!r} of {whole!r} is not in this run, whose parts of it are "
            f"{', '.join(map(repr, options.parts[whole]))} (task.parts)"
        )
    return options.parts[whole].index(name) + 1
