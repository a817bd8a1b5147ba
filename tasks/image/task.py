"""The image classification task: a classifier whose inputs are images, with simulated shifts between clients.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Part, Purpose, Suggestion, TaskData, split_with
from fednc.common.tasks.classifier import ClassifierTask
from fednc.common.tasks.file_names import file_stem
from fednc.common.tasks.graph_input import GraphInput
from fednc.common.tasks.request_forms import RequestForm
from fednc.common.tasks.tensor_data import UNLABELLED
from fednc.tasks.vision.augmentations import SHIPPED, Augmentation
from fednc.tasks.vision.backbones import build_backbone, width_of
from fednc.tasks.vision.dataset import ImageBatch, ImageData
from fednc.tasks.vision.graph_input import pixel_input
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.request_forms import image_forms
from fednc.tasks.vision.sheet import sheet
from fednc.tasks.vision.shifts import ImageSplit, is_shifted, shift_part, shift_test
from fednc.tasks.vision.sources import select
from fednc.tasks.vision.suggest import suggest
from fednc.tasks.vision.timm_models import is_timm

SHOWN_WRONG = 24  # images on the sheet of wrong predictions
SHEET_BATCH = 256


class ImageTask(ClassifierTask):
    """Image classification. Batches are (normalised images [B, C, H, W], int64 labels [B])."""

    name = "image"
    sources: ClassVar[tuple[str, ...]] = ("digits", "npz", "folder")
    Options = ImageOptions
    Split = ImageSplit
    options: ImageOptions
    augmentations: ClassVar[tuple[type[Augmentation], ...]] = SHIPPED  # that `task.augment` may name

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self._chosen_augmentations = self._augmentations()

    def _augmentations(self) -> tuple[Augmentation, ...]:
        """Those that `task.augment` lists. Raises ConfigError for a name that the task does not have."""
        chosen, known = self.options.augment, {each.name: each for each in self.augmentations}
        if isinstance(chosen, str):
            return ()
        if unknown := [name for name in chosen if name not in known]:
            raise ConfigError(
                f"task.augment: there is no change called {', '.join(map(repr, unknown))}; choose among "
                f"{', '.join(known)}"
            )
        return tuple(known[name]() for name in chosen)

    def backbone(self) -> tuple[nn.Module, int]:
        """The layers that `task.model` names."""
        return build_backbone(self.options)

    @property
    def width(self) -> int:
        """Width of the backbone's features."""
        return width_of(self.options)

    def read(self, spec: str, purpose: Purpose) -> ImageData:
        """The images at `spec`; for prediction also an image file, a folder or an .npz. Raises DataError."""
        test_share = self.run.evaluate.test_share
        if purpose == "input":
            images = select.read_input(spec, self.options, test_share)
        else:
            images = select.read(spec, purpose, self.options, test_share)
        return ImageData(
            pixel_NCHW=images.pixel_NCHW,
            label_N=images.label_N,
            label_space=self.label_space,
            mean_C11=torch.tensor(self.options.mean)[:, None, None],
            std_C11=torch.tensor(self.options.std)[:, None, None],
            augment=purpose == "train" and self.options.augment == "crop-flip",
            augmentations=self._chosen_augmentations if purpose == "train" else (),
            names=images.names,
            notes=images.notes,
            label_names=images.label_names,
        )

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Options that fit the images at `spec`: class names, size, colour. Raises DataError."""
        return suggest(spec)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training images at `spec`, or one part of them with the split's shift. Raises DataError."""
        data = super().load_train(spec, part, split)
        if part is None or not is_shifted(split_with(part, split)):
            return data
        assert isinstance(data, ImageData)
        return replace(data, pixel_NCHW=shift_part(data.pixel_NCHW, split_with(part, split), part.index))

    def load_test(self, spec: str) -> TaskData:
        """The test images at `spec`, with a mix of all parts' shifts if the split has any. Raises DataError."""
        data = self.read(spec, "test")
        split = self.run.split
        if split is None or not is_shifted(split):
            return data
        return replace(data, pixel_NCHW=shift_test(data.pixel_NCHW, split))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """x_train, y_train, x_test, y_test as stored, and the class names that the labels index."""
        assert isinstance(train, ImageData)
        assert isinstance(test, ImageData)
        return {
            "x_train": _as_stored(train),
            "y_train": train.label_N.numpy(),
            "x_test": _as_stored(test),
            "y_test": test.label_N.numpy(),
            "classes": np.array(self.class_names),
        }

    def loss(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `guide.method` on the features of a batch."""
        pixel_BCHW, label_B = batch
        if len(label_B) == 1 and (self.options.norm == "batch" or is_timm(self.options.model)):
            # Batch normalisation has no variance over one value per channel; two copies have the same mean loss.
            batch = pixel_BCHW.repeat(2, 1, 1, 1), label_B.repeat(2)
        return super().loss(model, batch, guide)

    def same_for_each_batch(self, guide: Guide) -> bool:
        """True, but for models of timm, of which this is not known. A task that derives from this one and
        overrides `loss` must also override this.
        """
        del guide
        return type(self).loss is ImageTask.loss and not is_timm(self.options.model)

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`wrong.png`: misclassified test images, with their true and their predicted class."""
        assert isinstance(data, ImageData)
        scores = [self.scores(model, pixel_BCHW, guide) for pixel_BCHW, _ in data.eval_batches(SHEET_BATCH)]
        guess_N = torch.cat(scores).argmax(dim=1)
        wrong = ((guess_N != data.label_N) & (data.label_N != UNLABELLED)).nonzero().flatten()[:SHOWN_WRONG]
        if not len(wrong):
            return {}
        names = self.class_names
        texts = [(names[int(data.label_N[i])], f"not {names[int(guess_N[i])]}") for i in wrong]
        return {"wrong.png": sheet(data.pixel_NCHW[wrong], texts)}

    def prediction_files(self, batch: ImageBatch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For each image a small PNG of what the model saw, with the predicted class and its confidence."""
        mean_C11, std_C11 = (torch.tensor(each)[:, None, None] for each in (self.options.mean, self.options.std))
        pixel_NCHW = (batch[0].cpu() * std_C11 + mean_C11).clamp(0, 1)
        files = {}
        for number, (name, told) in enumerate(zip(names, self.described(output), strict=False)):
            text = str(told["class"]), f"{told['confidence']:.0%}"
            files[f"{file_stem(name)}.png"] = sheet(pixel_NCHW[number : number + 1], [text])
        return files

    def preprocessing(self) -> dict[str, Any]:
        """Raw image to model input: colour, size, 0..1, minus mean, divided by std; axes C, H, W."""
        return {
            "channels": self.options.channels,
            "size": self.options.size,
            "resize": "bilinear with antialiasing, aspect ratio not kept",
            "range": [0.0, 1.0],
            "mean": list(self.options.mean),
            "std": list(self.options.std),
        }

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Image files, pixels, or preprocessed images."""
        return image_forms(self.options)

    def graph_input(self) -> GraphInput:
        """Pixels 0..255 of the run's size. The graph normalises them; the caller resizes."""
        return pixel_input(self.options)


def _as_stored(data: ImageData) -> np.ndarray[Any, Any]:
    pixel_NHWC = data.pixel_NCHW.numpy().transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixel_NHWC[..., 0] if pixel_NHWC.shape[3] == 1 else pixel_NHWC)
