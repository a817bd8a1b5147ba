"""Maps the label values of a source to the run's classes: by name, never by position.

Used by `select.py`.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.options import DenseOptions

SHOWN = 20  # names listed in a message


def map_values(
    label_NHW: Tensor,
    value_names: Sequence[str] | None,
    names: Sequence[str],
    options: DenseOptions,
    source: str,
) -> Tensor:
    """uint8 [N, H, W]: labels as positions in the run's `classes`, or `VOID`.

    Args:
        value_names: names of the label values from 0 on; None: they are positions already.
        names: where each picture came from, for messages.

    Raises:
        DataError: a value has no name, or its name is neither a class of the run nor one of `task.void`.
    """
    given = list(options.classes) if value_names is None else list(value_names)
    place = {name: number for number, name in enumerate(options.classes)}
    known = {value: place.get(name, VOID) for value, name in enumerate(given)} | {VOID: VOID}
    used = torch.unique(label_NHW).tolist()
    outside = [value for value in used if value not in known]
    if outside:
        listed = _quoted(given)
        owner = "the run's classes have" if value_names is None else "its own list has"
        raise DataError(
            f"{source}: unknown label value {outside[0]} in {_where(label_NHW, outside[0], names)}; {owner} the "
            f"values 0 to {len(given) - 1} ({listed}), and {VOID} is void. Correct the label, or give the value a "
            "name in the list of names (docs/segmentation.md)."
        )
    strange = [
        value for value in used if known[value] == VOID and value != VOID and given[value] not in options.void
    ]
    if strange:
        names_of = _quoted([given[value] for value in strange])
        raise DataError(
            f"{source}: label value {strange[0]} in {_where(label_NHW, strange[0], names)} is {names_of}, which "
            f"is not in this run. The run has {_quoted(options.classes)}. Name it in task.void to leave such "
            "pixels out, or use another run file."
        )
    table = torch.full((VOID + 1,), VOID, dtype=torch.uint8)
    for value, position in known.items():
        table[value] = position
    return table[label_NHW.long()]


def _where(label_NHW: Tensor, value: int, names: Sequence[str]) -> str:
    having = (label_NHW == value).flatten(1).any(dim=1).nonzero().flatten().tolist()
    first = names[having[0]] if names else f"picture {having[0]}"
    return first + (f" and {len(having) - 1} more pictures" if len(having) > 1 else "")


def _quoted(names: Sequence[str]) -> str:
    more = [f"... ({len(names)} in all)"] if len(names) > SHOWN else []
    return ", ".join([*(repr(str(name)) for name in names[:SHOWN]), *more])
