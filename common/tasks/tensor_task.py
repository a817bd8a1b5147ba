"""A task without classes whose data are rows of tensors: reading, simulated splits and comparisons are given.

A task of this kind says what its model is and how its data is read; docs/tasks.md shows a regression. Knows no
kind of data.

Legend: B batch, N examples.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fednc.common.config.tables import SplitSection
from fednc.common.errors import DataError
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Part, Purpose, Task, TaskData, split_with
from fednc.common.tasks.splits import Index, split_digest, split_index
from fednc.common.tasks.tensor_data import TensorData

_PACKED = "packed:"  # data specs of what `pack` wrote; every other spec is the task's own


class TensorTask(Task):
    """A task whose batches are tuples of tensors [B, ...], inputs first."""

    @abstractmethod
    def read(self, spec: str, purpose: Purpose) -> TensorData:
        """The examples at `spec`: `TensorData(tensors=(inputs, targets))`. Raises DataError.

        Args:
            purpose: `train`, `test`, or `input` for examples to predict on.
        """

    def groups(self, data: TensorData) -> Index:
        """int64 [N]: the group of each example; a simulated split gives clients unlike shares of the groups.

        One group by default: then the kinds of split differ only in how many examples a client gets.
        """
        return np.zeros(data.examples, np.int64)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TensorData:
        """The training examples at `spec`, or one part of them. Raises DataError."""
        data = self._read(spec, "train")
        if part is None:
            return data
        split = split_with(part, split)
        return data.select(split_index(self.groups(data), split)[part.index])

    def load_test(self, spec: str) -> TensorData:
        """The test examples at `spec`. Raises DataError."""
        return self._read(spec, "test")

    def load_input(self, spec: str) -> TensorData:
        """The examples at `spec` to predict on. Raises DataError."""
        return self._read(spec, "input")

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(split_index(self.groups(self._read(spec, "train")), split))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """Each tensor, as `train_0`, `train_1` and so on, and `test_0` and so on."""
        assert isinstance(train, TensorData)
        assert isinstance(test, TensorData)
        parts = {"train": train.tensors, "test": test.tensors}
        return {f"{part}_{i}": tensor.numpy() for part, all_ in parts.items() for i, tensor in enumerate(all_)}

    def packed_spec(self, path: Path) -> str:
        """A spec that never reaches `read`."""
        return f"{_PACKED}{path}"

    def _read(self, spec: str, purpose: Purpose) -> TensorData:
        """As `read`, and what `pack` wrote."""
        if spec.startswith(_PACKED):
            return _unpacked(spec, "train" if purpose == "train" else "test")
        return self.read(spec, purpose)


def _unpacked(spec: str, part: str) -> TensorData:
    try:
        arrays = npz_files.read_npz(spec.removeprefix(_PACKED))
        names = [f"{part}_{i}" for i in range(len(arrays)) if f"{part}_{i}" in arrays]
        tensors = tuple(torch.from_numpy(arrays[name]) for name in names)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as e:
        raise DataError(f"{spec}: cannot be read as packed data ({type(e).__name__}: {e})") from e
    if not tensors:
        raise DataError(f"{spec}: has no array {part}_0; give a file that `fednc compare` has written")
    return TensorData(tensors=tensors)
