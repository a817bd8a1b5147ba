"""Which labels the pictures of a client have, and whether their values are ones that the run knows.

Called by the task when it reads data, so that a client is told before round one. Must not know the model.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.tasks.dense.dataset import DenseData
from fednc.tasks.dense.maps import DEPTH, EDGES, PART, SALIENCY, VOID, known
from fednc.tasks.dense.preparation import read_data
from fednc.tasks.multitask.kinds import KINDS
from fednc.tasks.multitask.options import MultitaskOptions


def read_labelled(spec: str, purpose: Purpose, options: MultitaskOptions, label_space: int) -> DenseData:
    """The pictures at `spec` with the labels that they have of the run's tasks.

    Raises:
        DataError: as `read_data`; no labels of any task of the run; a value that means nothing in this run.
    """
    wanted = tuple(KINDS[task].map for task in options.tasks)
    data = read_data(spec, purpose, options, label_space, wanted, some=True)
    for kind, value in data.maps.items():
        _check(kind, value, data.names, spec, options)
    counts = labelled(data, options.tasks)
    if purpose == "input":
        return data
    if not any(counts.values()):
        raise DataError(
            f"{spec}: not one pixel has a label of this run's tasks ({', '.join(options.tasks)}). Give data with "
            "labels of one of them (docs/multitask.md)."
        )
    told = ", ".join(f"{task} {count}" for task, count in counts.items())
    return data.with_notes((f"pictures with labels of each task: {told}", *_without_pixels(data, options)))


def labelled(data: DenseData, tasks: Sequence[str]) -> dict[str, int]:
    """By task, the number of pictures with labels of it."""
    return {task: data.having(KINDS[task].map) for task in tasks}


def _without_pixels(data: DenseData, options: MultitaskOptions) -> tuple[str, ...]:
    """A note on parts that no picture has, if there are part labels."""
    counts = part_counts(data, options.parts) if data.having(PART) else {}
    missing = ", ".join(repr(name) for name, count in counts.items() if not count)
    return (f"no pixel of some of the run's parts: {missing}",) if missing else ()


def part_counts(data: DenseData, parts: Sequence[str]) -> dict[str, int]:
    """By part, the number of pictures with a pixel of it."""
    if PART not in data.maps:
        return dict.fromkeys(parts, 0)
    part_NP = data.maps[PART].flatten(1)
    return {name: int((part_NP == value).any(dim=1).sum()) for value, name in enumerate(parts)}


def targets_of(batch: Sequence[Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
    """The truth of each task in a batch, of those of which it knows a pixel."""
    pairs = zip(tasks, batch[1:], strict=True)
    return {task: value for task, value in pairs if bool(known(KINDS[task].map, value).any())}


def _check(kind: str, value: Tensor, names: Sequence[str], spec: str, options: MultitaskOptions) -> None:
    """Raises DataError: a value that the run does not know."""
    odd = _odd(kind, value, options)
    if not bool(odd.any()):
        return
    first = int(odd.flatten(1).any(dim=1).nonzero()[0])
    where = names[first] if names else f"picture {first}"
    example = value[odd][0].item()
    raise DataError(f"{spec}: the {kind} map of {where} has the value {example:g}; {_expected(options)[kind]}.")


def _odd(kind: str, value: Tensor, options: MultitaskOptions) -> Tensor:
    if kind in (EDGES, SALIENCY):
        return known(kind, value) & (value > 1)
    if kind == PART:
        return known(kind, value) & (value >= len(options.parts))
    if kind == DEPTH:
        return known(kind, value) & ~((value >= 0) & (value < torch.inf))
    return torch.zeros_like(value, dtype=torch.bool) if value.dtype == torch.uint8 else ~value.isfinite()


def _expected(options: MultitaskOptions) -> Mapping[str, str]:
    parts = ", ".join(options.parts)
    binary = f"expected 0 or 1, or {VOID} where nothing is known"
    return {
        EDGES: binary,
        SALIENCY: binary,
        PART: f"this run's parts are 0 to {len(options.parts) - 1} ({parts}), and {VOID} is unknown: task.parts",
        DEPTH: "expected 0 or more, or NaN where nothing is known",
        "normals": "expected finite vectors, or zero where nothing is known",
    }
