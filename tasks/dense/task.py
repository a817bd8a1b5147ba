"""What every dense task does with its pictures: read, divide over clients, pack, and say how to prepare them.

The base of dense tasks, classifiers or not. Must not know which task it is.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fednc.common.config.tables import SplitSection
from fednc.common.tasks.api import Part, Purpose, Task, TaskData, split_with
from fednc.common.tasks.request_forms import RequestForm, preprocessed
from fednc.common.tasks.splits import split_digest
from fednc.tasks.dense import pictures
from fednc.tasks.dense.dataset import DenseBatch, DenseData, normalised
from fednc.tasks.dense.models import at_size
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.preparation import DenseSplit, packed, parts_of
from fednc.tasks.dense.sources.pixels import resized_picture


class DenseTask(Task):
    """A task with a value for every pixel. In a classifier it stands before `ClassifierTask` among the bases."""

    Split = DenseSplit
    examples_each_round = True
    options: DenseOptions

    @abstractmethod
    def read(self, spec: str, purpose: Purpose) -> DenseData:
        """The pictures at `spec`; for prediction also a picture file or a folder of them. Raises DataError."""

    def with_labels_of(self, mine: DenseData, split: SplitSection, part: int) -> DenseData:
        """The pictures of a part of a simulated split, with the labels that the part keeps: all of them."""
        del split, part
        return mine

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> DenseData:
        """The training pictures at `spec`, or one part of them. Raises DataError."""
        data = self.read(spec, "train")
        if part is None:
            return data
        split = split_with(part, split)
        return self.with_labels_of(data.select(parts_of(data, split)[part.index]), split, part.index)

    def load_test(self, spec: str) -> DenseData:
        """The test pictures at `spec`. Raises DataError."""
        return self.read(spec, "test")

    def load_input(self, spec: str) -> DenseData:
        """The pictures at `spec` to predict on. Raises DataError."""
        return self.read(spec, "input")

    @property
    def predicts_at_own_size(self) -> bool:
        """Whether predictions for people are made of pictures at their own size; by default at the run's size."""
        return False

    def displayed(self, model: nn.Module, batch: DenseBatch) -> Tensor:
        """Predictions at the size of the pictures: made at the run's size, which the model knows, and resized."""
        own = (batch[0].shape[2], batch[0].shape[3])
        if self.predicts_at_own_size or own == tuple(self.options.size):
            return super().displayed(model, batch)
        small = [self._at_run_size(pixel_CHW) for pixel_CHW in batch[0]]
        return at_size(super().displayed(model, (torch.stack(small),)), own)

    def _at_run_size(self, pixel_CHW: Tensor) -> Tensor:
        """A normalised picture, resized as the reader resizes it."""
        mean, std = self.options.mean, self.options.std
        pixel_HW3 = resized_picture(Image.fromarray(pictures.as_bytes(pixel_CHW, mean, std)), self.options.size)
        small_CHW = torch.from_numpy(pixel_HW3.transpose(2, 0, 1).copy())
        mean_C11, std_C11 = (torch.tensor(each)[:, None, None] for each in (mean, std))
        return normalised(small_CHW, mean_C11, std_C11).to(pixel_CHW.device)

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(parts_of(self.read(spec, "train"), split))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """Pictures, their maps with the run's numbers, sites, and the class names."""
        assert isinstance(train, DenseData)
        assert isinstance(test, DenseData)
        return packed(train, test, self.options.classes)

    def preprocessing(self) -> dict[str, Any]:
        """Raw picture to model input: colour, 0..1, minus mean, divided by std; axes C, H, W."""
        return {
            "channels": self.options.channels,
            "size": list(self.options.size),
            "resize": "bilinear, aspect ratio not kept",
            "range": [0.0, 1.0],
            "mean": list(self.options.mean),
            "std": list(self.options.std),
        }

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Prepared pictures."""
        return (preprocessed((self.options.channels, *self.options.size)),)
