"""Data specs of the task: `parity:LENGTH`, rows of numbers in `npz:PATH`, and images of every kind that tasks
read.

Called by the task. The parity strings are made by a formula, and are the same on every machine.

Legend: N examples, F values of an example.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.seeds import generator as seeded
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec, parse_spec
from fednc.common.tasks.tensor_data import hold_out_index
from fednc.tasks.quantum.options import MOST_QUBITS, QuantumOptions
from fednc.tasks.vision.dataset import as_unit_range
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources import select

PARITY = "parity"
CLASSES = ("even", "odd")  # of the strings, by the number of ones
TEST_SHARE = 0.25  # of the strings
TEST_SEED = 0  # the same strings are held out in every run and on every machine


@dataclass(frozen=True, kw_only=True)
class ValueRows:
    """Examples as a reader found them. `labels`: class names or numbers; None if unknown."""

    value_NF: Tensor
    labels: tuple[str, ...] | Tensor | None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read(text: str, purpose: Purpose, options: QuantumOptions, test_share: float) -> ValueRows:
    """The examples of data spec `text`.

    Args:
        test_share: `evaluate.test_share`; divides rows without a test part.

    Raises:
        DataError: they are missing or unreadable, or do not have the run's classes and number of values.
    """
    spec = parse_spec(text)
    is_parity = spec.kind == PARITY
    if options.size and not is_parity:
        found = _images(text, purpose, options, test_share)
    else:
        found = _parity(spec, purpose) if is_parity else _arrays(_npz_spec(spec, purpose), purpose, test_share)
        _check(found.value_NF, options, text)
    return replace(found, notes=(*found.notes, *_unused(options)))


def _unused(options: QuantumOptions) -> tuple[str, ...]:
    """A note on values of an example that no upload reaches."""
    used = options.wires * options.uploads
    if options.model != "circuit" or options.encoding != "angle" or used >= options.inputs:
        return ()
    enough = -(-options.inputs // options.wires)
    return (
        f"only the first {used} of {options.inputs} values are used: {options.wires} qubits take as many in each "
        f"upload. Set task.uploads to {enough} or more to use all.",
    )


def length_of(spec: DataSpec) -> int:
    """Bits of the strings of `parity:LENGTH`. Raises DataError."""
    if not spec.place.isdecimal() or not 2 <= int(spec.place) <= MOST_QUBITS:
        raise DataError(f"data {spec.text!r}: expected parity:LENGTH with 2 to {MOST_QUBITS} bits, e.g. parity:6")
    return int(spec.place)


def _parity(spec: DataSpec, purpose: Purpose) -> ValueRows:
    """All strings of so many bits; a quarter of them, drawn once and for all, is for the test."""
    strings = list(itertools.product((0, 1), repeat=length_of(spec)))
    bit_NF = torch.tensor(strings, dtype=torch.float32)
    order_N = torch.randperm(len(strings), generator=seeded(TEST_SEED, PARITY))
    held = int(len(strings) * TEST_SHARE)
    row_N = (order_N[held:] if purpose == "train" else order_N[:held]).sort().values
    labels = tuple(CLASSES[sum(strings[row]) % 2] for row in row_N.tolist())
    names = tuple("".join(map(str, strings[row])) for row in row_N.tolist())
    return ValueRows(value_NF=bit_NF[row_N], labels=labels, names=names)


def _npz_spec(spec: DataSpec, purpose: Purpose) -> DataSpec:
    if purpose == "input" and spec.kind != "npz" and Path(spec.source).expanduser().is_file():
        return replace(spec, kind="npz", place=spec.source, has_colon=True)
    if spec.kind != "npz" or not spec.place:
        raise DataError(f"data {spec.text!r}: expected parity:LENGTH or npz:PATH; images need task.size")
    return spec


def _arrays(spec: DataSpec, purpose: Purpose, test_share: float) -> ValueRows:
    """x_train [N, F] and y_train, optionally x_test, y_test and `classes`."""
    found = npz_files.arrays_in(Path(spec.place).expanduser(), spec.source)
    part = "test" if purpose != "train" and "x_test" in found else "train"
    value, label = found.get(f"x_{part}"), found.get(f"y_{part}")
    if value is None or value.dtype.kind not in "biuf" or (label is None and purpose != "input"):
        raise DataError(f"{spec.source}: expected numbers x_{part} and labels y_{part}; it has {sorted(found)}")
    if not value.ndim or not value.size:
        raise DataError(f"{spec.source}: x_{part} has shape {list(value.shape)}, expected [N, F] with rows in it")
    if label is not None and label.shape != (len(value),):
        raise DataError(
            f"{spec.source}: x_{part} has {len(value)} rows, but y_{part} has shape {list(label.shape)}; give one "
            "label for each row"
        )
    with np.errstate(over="ignore"):  # infinite values are refused by `_check`
        value_NF = torch.from_numpy(value.reshape(len(value), -1).astype(np.float32))
    labels = None if label is None else _labels(label, found.get("classes"), spec)
    rows = ValueRows(value_NF=value_NF, labels=labels)
    return rows if "x_test" in found or labels is None else _divided(rows, purpose, test_share, spec)


def _labels(label: np.ndarray, names: np.ndarray | None, spec: DataSpec) -> tuple[str, ...] | Tensor:
    if label.dtype.kind not in "iuUS":
        raise DataError(f"{spec.source}: labels are {label.dtype}, expected names or whole numbers")
    if label.dtype.kind in "US":
        return npz_files.texts(label, f"{spec.source}: labels")
    given = spec.class_names or (npz_files.texts(names, f"{spec.source}: classes") if names is not None else ())
    if not given:
        return tuple(map(str, label.tolist()))
    if len(label) and not 0 <= label.min() <= label.max() < len(given):
        raise DataError(f"{spec.source}: labels {label.min()} to {label.max()}, but {len(given)} class names")
    return tuple(given[int(number)] for number in label)


def _divided(rows: ValueRows, purpose: Purpose, share: float, spec: DataSpec) -> ValueRows:
    """The training or test part of rows without a test part."""
    assert isinstance(rows.labels, tuple)
    if share in (0, 1) and (purpose != "test" or share == 1):
        return rows
    if share == 0:
        raise DataError(
            f"{spec.source} has no test part, and its {len(rows.value_NF)} rows may be training data. Set "
            "evaluate.test_share, e.g. 0.2, or add x_test and y_test"
        )
    number_N = np.unique(np.array(rows.labels), return_inverse=True)[1].astype(np.int64)
    rest, held = hold_out_index(number_N, share, TEST_SEED)
    index = rest if purpose == "train" else held
    return ValueRows(value_NF=rows.value_NF[torch.from_numpy(index)], labels=tuple(rows.labels[i] for i in index))


def _check(value_NF: Tensor, options: QuantumOptions, text: str) -> None:
    """Raises DataError: another number of values, values that are no numbers, or no bits where bits are needed."""
    if value_NF.shape[1] != options.inputs:
        raise DataError(
            f"{text}: {value_NF.shape[1]} values in an example, but the run has task.values = {options.values}"
        )
    if not bool(value_NF.isfinite().all()):
        raise DataError(f"{text}: there are values that are not finite; remove or repair these rows")
    if options.encoding == "basis" and not bool(((value_NF == 0) | (value_NF == 1)).all()):
        raise DataError(f"{text}: task.encoding = 'basis' needs values 0 and 1; use 'angle' or 'amplitude'")


def _images(text: str, purpose: Purpose, options: QuantumOptions, test_share: float) -> ValueRows:
    """Grey images of the run's size, as rows of pixels in 0..1."""
    wanted = ImageOptions(classes=options.classes, size=options.size, channels=1, resize=True)
    if purpose == "input":
        found = select.read_input(text, wanted, test_share)
    else:
        found = select.read(text, purpose, wanted, test_share)
    pixel_NCHW = as_unit_range(found.pixel_NCHW)
    return ValueRows(value_NF=pixel_NCHW.flatten(1), labels=found.label_N, names=found.names, notes=found.notes)
