"""Maps the labels of data to positions in the run's classes: by name, never by position.

Used by the readers. Names are compared in one Unicode form, because file systems and archives may change the form.
A number without a name only maps to the class with that number as its name ('3').

Legend: N examples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.splits import Index
from fednc.common.tasks.tensor_data import UNLABELLED
from fednc.tasks.vision.options import ImageOptions

SHOWN = 20  # names listed in a message
Values = np.ndarray[Any, Any]

_INSTEAD = {
    "f": "Convert whole numbers with y.astype('int64'); other values are not classes.",
    "b": "Convert them with y.astype('int64') and name both classes.",
    "O": "Some are missing or have different types: give every example one label.",
}


def comparable(name: str) -> str:
    """A Unicode form in which equal names compare equal."""
    return unicodedata.normalize("NFC", name)


def name_list(values: Values, source: str) -> list[str]:
    """Class names as text from an array. Raises DataError if it is not a list of distinct names."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise DataError(
            f"{source}: class names are {values.dtype} {list(values.shape)}, expected texts [K], one for "
            "each label from 0"
        )
    names = [as_text(value, source) for value in values]
    refuse_twins(names, source)
    return names


def as_text(value: Any, source: str) -> str:
    """A name as text; bytes must be UTF-8. Raises DataError if they are not."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{source}: the name {value!r} is not UTF-8. Store names as text.") from e


def refuse_twins(names: Sequence[str], source: str) -> None:
    """Raises DataError for a name that occurs twice, or in two Unicode forms."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(comparable(name), name)
        if other is not name:
            how = "occurs twice" if other == name else "occurs in two Unicode forms (NFC and NFD)"
            raise DataError(f"{source}: the class name {name!r} {how}. Keep one.")


def map_names(found: Sequence[str], options: ImageOptions, source: str) -> Index:
    """The position of each of the data's class names in the run's `classes`.

    Raises:
        DataError: the run does not have some of the names; the message lists both sides.
    """
    place = {comparable(name): i for i, name in enumerate(options.classes)}
    unknown = sorted(name for name in set(found) if comparable(name) not in place)
    if unknown and not options.takes_unknown:
        raise DataError(
            f"{source}: classes {quoted(unknown)} are not in this run. The data has "
            f"{quoted(sorted(set(found)))}; the run has {quoted(options.classes)}. "
            f"{_alike(unknown, options.classes)}Rename or remove them in the data, or use another run file."
        )
    return np.array([place.get(comparable(name), UNLABELLED) for name in found], dtype=np.int64)


def map_labels(labels: Values, found: Sequence[str] | None, options: ImageOptions, source: str) -> Tensor:
    """int64 [N]: labels as positions in the run's `classes`.

    Args:
        labels: names as texts, or integers.
        found: names of integer labels, from 0; only those in use must be in the run. None: the data has no names.

    Raises:
        DataError: labels have another type, are outside the list of names, or are not classes of the run.
    """
    labels = as_column(labels, source)
    used, place_N = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "US":
        position = map_names([as_text(name, source) for name in used], options, source)
    elif found is None:
        position = _by_number(used, options, source)
    else:
        _refuse_outside(used, found, source)
        position = map_names([str(found[i]) for i in used], options, source)
    return torch.from_numpy(position[place_N])


def as_column(labels: Values, source: str) -> Values:
    """[N] from [N] or [N, 1]: integers or texts. Raises DataError for anything else, and says what to do."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
        several = labels.ndim == 2 and "Convert one-hot rows to labels with y.argmax(axis=1)."
        raise DataError(
            f"{source}: labels are {labels.dtype} {list(labels.shape)}, expected integers or names [N]. "
            f"{several or _INSTEAD.get(labels.dtype.kind, '')}".rstrip()
        )
    return labels


def quoted(names: Sequence[str]) -> str:
    """The names in quotes, cut to a number that fits into a message."""
    more = [f"... ({len(names)} in all)"] if len(names) > SHOWN else []
    return ", ".join([*(repr(str(name)) for name in names[:SHOWN]), *more])


def _by_number(used: Values, options: ImageOptions, source: str) -> Index:
    """Positions of the classes whose names are the numbers in use. Raises DataError if the run has other names."""
    place = {name: i for i, name in enumerate(options.classes)}
    position = np.array([place.get(str(number), UNLABELLED) for number in used], dtype=np.int64)
    unknown = used[position == UNLABELLED]
    if len(unknown) == 0 or (options.takes_unknown and len(unknown) < len(used)):
        return position
    raise DataError(
        f"{source}: labels {quoted(list(unknown))} have no names, and the run's classes are "
        f"{quoted(options.classes)}. Name the labels: --class-names a,b,c (a is label 0, b is 1, ...), "
        "?class-names=a,b,c after the data spec, or an array `classes` in the file."
    )


def _refuse_outside(used: Values, names: Sequence[str], source: str) -> None:
    outside = used[(used < 0) | (used >= len(names))]
    if len(outside):
        from_1 = len(used) and used.min() == 1 and used.max() == len(names)
        hint = "For labels that start at 1, use y - 1, or add a name for label 0. " if from_1 else ""
        raise DataError(
            f"{source}: label {outside[0]} is outside 0..{len(names) - 1}: its own list has {len(names)} classes "
            f"({quoted(names)}). {hint}Correct the labels or the list."
        )


def _alike(unknown: Sequence[str], classes: Sequence[str]) -> str:
    """Which names differ from the run's only in case or spaces."""
    loose = {comparable(name).strip().casefold(): name for name in classes}
    pairs = [(name, loose.get(comparable(name).strip().casefold())) for name in unknown]
    told = [f"{name!r} differs from {other!r} only in case or spaces" for name, other in pairs if other]
    return f"{'; '.join(told[:SHOWN])}. " if told else ""
