"""Examples that are rows of tensors, with or without labels, and ways to choose some of them.

For tasks whose data fits into memory; trainer and evaluation use them as `TaskData`. Knows no task.

Legend: N examples, K label space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fednc.common.seeds import generator as seeded
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.data_column import DataColumn

UNLABELLED = -1  # label of an example without a label
Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorData(TaskData):
    """Rows of several tensors; a batch is a tuple with some rows of each.

    Attributes:
        tensors: each [N, ...], inputs first.
        names: where each example came from (for `fednc predict`); may be empty.
        notes: what was read and what was left out, to show to users.
        column_report: what was found in each column; see TaskData.
        named_columns: what an example consists of, for its owner's data manifest; empty: its tensors by number.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    column_report: tuple[Mapping[str, object], ...] = ()
    named_columns: tuple[DataColumn, ...] = ()

    @property
    def examples(self) -> int:
        """Number of rows."""
        return len(self.tensors[0])

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """See TaskData."""
        return self.tensors

    @property
    def columns(self) -> tuple[DataColumn, ...]:
        """See TaskData."""
        return self.named_columns or super().columns

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """One epoch in an order drawn from `generator` (a CPU one); see `run_lengths` for its last batch."""
        order_N = torch.randperm(self.examples, generator=generator).to(self.tensors[0].device)
        for row_B in order_N.split(run_lengths(self.examples, batch)):
            yield tuple(tensor[row_B] for tensor in self.tensors)

    def eval_batches(self, batch: int) -> Iterator[tuple[Tensor, ...]]:
        """All rows in stored order."""
        for start in range(0, self.examples, batch):
            yield tuple(tensor[start : start + batch] for tensor in self.tensors)

    def hold_out(self, share: float, seed: int) -> tuple[Self, Self]:
        """(training data, held-out data), drawn at random."""
        rest, held = hold_out_index(np.zeros(self.examples, np.int64), share, seed)
        return self.select(rest), self.select(held)

    def select(self, index: Index) -> Self:
        """The rows at `index`, in that order."""
        row_B = torch.from_numpy(index).to(self.tensors[0].device)
        names = tuple(self.names[i] for i in index) if self.names else ()
        return replace(self, tensors=tuple(tensor[row_B] for tensor in self.tensors), names=names)

    def to(self, device: torch.device) -> Self:
        """The same rows on `device`."""
        return replace(self, tensors=tuple(tensor.to(device) for tensor in self.tensors))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledTensors(TensorData):
    """Rows with labels: the last tensor is int64 [N], `UNLABELLED` for a row without a label.

    Attributes:
        label_space: K.
    """

    label_space: int

    @property
    def label_N(self) -> Tensor:
        """The labels."""
        return self.tensors[-1]

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: rows of each class, on the CPU."""
        return count_of(self.label_N, self.label_space)

    def hold_out(self, share: float, seed: int) -> tuple[Self, Self]:
        """(training data, held-out data): `hold_out_index` of the labels."""
        rest, held = hold_out_index(self.label_N.cpu().numpy(), share, seed)
        return self.select(rest), self.select(held)

    def of_classes(self, first: int, end: int) -> Self:
        """See TaskData."""
        return self.select(class_index(self.label_N, first, end))

    def few(self, shots: int, seed: int) -> Self:
        """See TaskData."""
        return self.select(few_index(self.label_N, shots, seed))


def count_of(label_N: Tensor, label_space: int) -> Tensor:
    """int64 [K], on the CPU: examples of each class."""
    return torch.bincount(label_N[label_N != UNLABELLED], minlength=label_space).cpu()


def class_index(label_N: Tensor, first: int, end: int) -> Index:
    """Examples of classes `first` to `end` - 1, in stored order."""
    label = label_N.cpu().numpy()
    return np.flatnonzero((label >= first) & (label < end))


def few_index(label_N: Tensor, shots: int, seed: int) -> Index:
    """At most `shots` examples of each class, drawn with `seed`."""
    label = label_N.cpu().numpy()
    shuffled_N = torch.randperm(len(label), generator=seeded(seed, "shots")).numpy()
    drawn = [shuffled_N[label[shuffled_N] == c][:shots] for c in np.unique(label)]
    return np.sort(np.concatenate([shuffled_N[:0], *drawn]))


def hold_out_index(label_N: Index, share: float, seed: int) -> tuple[Index, Index]:
    """(rest, held out): disjoint, together all examples, each ascending; the same for the same seed.

    Holds out share * N examples, rounded up, but leaves at least one for training. Each class contributes its
    share rounded down; the remaining ones come one each from the classes that rounding cut most.
    """
    shuffled_N = torch.randperm(len(label_N), generator=seeded(seed, "hold-out")).numpy()
    return _held_out_in_order(label_N, share, shuffled_N)


def hold_out_last_index(label_N: Index, share: float) -> tuple[Index, Index]:
    """As `hold_out_index`, but the last examples of each class: for rows in the order in which they were recorded.

    Neighbours in time are nearly the same example, so a random draw would test on what was trained.
    """
    return _held_out_in_order(label_N, share, np.arange(len(label_N))[::-1])


def _held_out_in_order(label_N: Index, share: float, order_N: Index) -> tuple[Index, Index]:
    """The share of each class that comes first in `order_N` is held out."""
    total = max(0, min(len(label_N) - 1, math.ceil(share * len(label_N) - 1e-9)))
    _, class_N, count_C = np.unique(label_N, return_inverse=True, return_counts=True)
    wanted_C = count_C * (total / max(1, len(label_N)))
    quota_C = np.floor(wanted_C + 1e-9).astype(np.int64)
    most_cut_C = np.argsort(quota_C - wanted_C, kind="stable")
    quota_C[most_cut_C[: total - quota_C.sum()]] += 1
    held = np.concatenate(
        [order_N[class_N[order_N] == c][:quota] for c, quota in enumerate(quota_C)]
        or [order_N]  # no examples, no classes
    )
    return np.setdiff1d(np.arange(len(label_N)), held), np.sort(held)


def run_lengths(examples: int, batch: int) -> list[int]:
    """Sizes of the batches of an epoch. A last batch of one joins the batch before it.

    Batch normalisation cannot learn from a batch of one.
    """
    runs = [batch] * (examples // batch) + [examples % batch] * (examples % batch > 0)
    if len(runs) > 1 and runs[-1] == 1 and batch > 1:
        runs[-2:] = [batch + 1]
    return runs
