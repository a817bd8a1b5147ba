"""The image classification task: wires options, data, models and the common losses to the task interface.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: B batch, D feature width, W width before the projection, K label space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError, DataError, ProtocolError
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import build_head, logits
from fednc.common.learning.losses import View, objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Part, Stats, Suggestion, Task, TaskData
from fednc.common.tasks.splits import Index, split_digest, split_index
from fednc.tasks.image.options import ImageOptions
from fednc.tasks.vision.backbones import ImageModel, build_backbone, width_of
from fednc.tasks.vision.dataset import UNLABELLED, ImageBatch, ImageData
from fednc.tasks.vision.shifts import is_shifted, shift_part, shift_test
from fednc.tasks.vision.sources import select
from fednc.tasks.vision.sources.images import Images, Purpose
from fednc.tasks.vision.suggest import suggest

# Losses are rounded to multiples of this before they are summed in float64: such sums are exact up to 2e9, so
# batches may be pooled in any order and grouping. It moves a mean loss by 1e-7 at most.
LOSS_STEP = 2.0**-22


class ImageTask(Task):
    """Image classification. Batches are (normalised images [B, C, H, W], int64 labels [B])."""

    name = "image"
    Options = ImageOptions
    options: ImageOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        if self.label_space < len(self.class_names):
            raise ConfigError(
                f"frame.vertices: {self.label_space} vertices for {len(self.class_names)} classes. Give it at "
                "least as many, or 0 for exactly as many."
            )
        if self._rehearses:
            _check_rehearsal(run)

    @property
    def class_names(self) -> tuple[str, ...]:
        """`task.classes`."""
        return self.options.classes

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Class names, size and colour of the images at `spec`. Raises DataError."""
        return suggest(spec)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> ImageData:
        """The training images at `spec`, or one part of them, shifted as the split says. Raises DataError."""
        images = self._read(spec, "train")
        if part is None:
            return self._data(images, augment=True)
        split = _split_with(part, split)
        data = self._data(images, augment=True).select(self._parts(images.label_N.numpy(), split)[part.index])
        if not is_shifted(split.shift):
            return data
        return replace(data, pixel_NCHW=shift_part(data.pixel_NCHW, split, part.index))

    def _parts(self, label_N: Index, split: SplitSection) -> list[Index]:
        """Which images each part has."""
        return split_index(label_N, split)

    def load_test(self, spec: str) -> ImageData:
        """The test images at `spec`, mixed from all parts' shifts where the split has any. Raises DataError."""
        data = self._data(self._read(spec, "test"))
        split = self.run.split
        if split is None or not is_shifted(split.shift):
            return data
        return replace(data, pixel_NCHW=shift_test(data.pixel_NCHW, split))

    def load_input(self, spec: str) -> ImageData:
        """A data spec's test images, or an image file's, a folder's or an .npz's, with names. Raises DataError."""
        return self._data(select.read_input(spec, self.options, self.run.evaluate.test_share))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """x_train, y_train, x_test, y_test as they are stored, and the class names that the labels count."""
        assert isinstance(train, ImageData)
        assert isinstance(test, ImageData)
        return {
            "x_train": _as_stored(train),
            "y_train": train.label_N.numpy(),
            "x_test": _as_stored(test),
            "y_test": test.label_N.numpy(),
            "classes": np.array(self.class_names),
        }

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(split_index(self._read(spec, "train").label_N.numpy(), split))

    @property
    def _rehearses(self) -> bool:
        """Whether the memory is that of features before the projection, for the projection to rehearse.

        Trained class vectors rehearse features as they are; frozen ones leave nothing but the projection.
        """
        return self.run.method.rehearsal > 0 and self.run.method.head == "frame"

    @property
    def memory_dim(self) -> int:
        """D, or the backbone's width for a memory from before the projection."""
        return width_of(self.options) if self._rehearses else self.run.frame.dim

    def build_model(self) -> ImageModel:
        """The head is drawn last, so that all methods start from the same backbone and projection."""
        backbone, width = build_backbone(self.options)
        projection = nn.Linear(width, self.run.frame.dim)
        head = build_head(self.run.method, self.run.frame.dim, self.label_space)
        return ImageModel(backbone, projection, head)

    def loss(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of `guide.method` on the features of a batch."""
        pixel_BCHW, label_B = batch
        if len(label_B) == 1 and self.options.norm == "batch":
            # Batch normalisation has no variance over one value per channel; two copies have the same mean loss.
            pixel_BCHW, label_B = pixel_BCHW.repeat(2, 1, 1, 1), label_B.repeat(2)
        image_model = _as_image_model(model)
        views = {name: _view(_as_image_model(m), pixel_BCHW, guide) for name, m in guide.companions.items()}
        deep_BW = image_model.backbone(pixel_BCHW)
        feat_BD = image_model.projection(deep_BW)
        again_KD = _projected_memory(image_model, deep_BW, guide) if self._rehearses else None
        return objective(feat_BD, label_B, image_model.head, guide, again_KD, views)

    def same_for_each_batch(self, guide: Guide) -> bool:
        """It does; a task that derives from this one and has a loss of its own must say so itself."""
        del guide
        return type(self).loss is ImageTask.loss

    def embed(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D], labels [B]); before the projection where that is what the memory is made of."""
        if self._rehearses:
            return unit(_as_image_model(model).backbone(batch[0])), batch[1]
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """See Task."""
        return unit(_as_image_model(model).features(batch[0])), batch[1]

    def inputs_of(self, batch: ImageBatch) -> Tensor:
        """Normalised images [B, C, H, W]."""
        return batch[0]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K] of normalised images [B, C, H, W]: the argmax is the prediction.

        -inf for vertices beyond today's classes.
        """
        image_model = _as_image_model(model)
        classes = len(self.class_names) if guide.classes is None else guide.classes
        return readout_logits(image_model.features(inputs), image_model.head, guide, classes)

    def statistics(self, model: nn.Module, batch: ImageBatch, guide: Guide) -> Stats:
        """Sums over the labelled images of a batch; loss is the cross-entropy of the read-out's softmax."""
        known_B = batch[1] != UNLABELLED
        label_B = batch[1][known_B]
        score_BK = self.scores(model, batch[0], guide)[known_B].float()
        loss_B = F.cross_entropy(score_BK, label_B, reduction="none").double()
        hit_B = score_BK.argmax(dim=1) == label_B
        return {
            "examples": torch.tensor(len(label_B)),
            "loss_sum": ((loss_B / LOSS_STEP).round() * LOSS_STEP).sum().cpu(),
            "correct": hit_B.sum().cpu(),
            "count_K": torch.bincount(label_B, minlength=self.label_space).cpu(),
            "correct_K": torch.bincount(label_B[hit_B], minlength=self.label_space).cpu(),
        }

    def no_statistics(self) -> Stats:
        """See Task."""
        none, none_K = torch.tensor(0), torch.zeros(self.label_space, dtype=torch.int64)
        return {
            "examples": none,
            "loss_sum": torch.tensor(0.0, dtype=torch.float64),
            "correct": none,
            "count_K": none_K,
            "correct_K": none_K,
        }

    def check_statistics(self, stats: Stats, announced: int) -> bool:
        """See Task."""
        examples, correct, count_K, correct_K = (
            stats[key] for key in ("examples", "correct", "count_K", "correct_K")
        )
        fits = 0 <= int(examples) <= announced and bool((correct_K >= 0).all() and (correct_K <= count_K).all())
        # Each count first: the total of absurd counts may wrap around in 64 bits.
        fits = fits and bool((count_K <= examples).all()) and int(count_K.sum()) == int(examples)
        if not fits or int(correct_K.sum()) != int(correct) or not stats["loss_sum"] >= 0:
            raise ProtocolError(f"the statistics contradict each other, or the {announced} examples held out")
        return int(examples) > 0

    def metrics(self, stats: Mapping[str, Tensor]) -> dict[str, float]:
        """`accuracy`, `loss`, `examples`, and `accuracy/<class>` of each class that has examples.

        Without any example, `examples` is 0 and there is no accuracy or loss: both are NaN.
        """
        examples = int(stats["examples"]) if stats else 0
        if examples == 0:
            return {"accuracy": float("nan"), "loss": float("nan"), "examples": 0.0}
        pooled = {
            "accuracy": int(stats["correct"]) / examples,
            "loss": float(stats["loss_sum"]) / examples,
            "examples": float(examples),
        }
        per_class = zip(self.class_names, stats["correct_K"].tolist(), stats["count_K"].tolist(), strict=False)
        return pooled | {f"accuracy/{name}": right / count for name, right, count in per_class if count}

    def batch_size_of(self, batch: ImageBatch) -> int:
        """B."""
        return len(batch[1])

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

    def _read(self, spec: str, purpose: Purpose) -> Images:
        return select.read(spec, purpose, self.options, self.run.evaluate.test_share)

    def _data(self, images: Images, augment: bool = False) -> ImageData:
        return ImageData(
            pixel_NCHW=images.pixel_NCHW,
            label_N=images.label_N,
            label_space=self.label_space,
            mean_C11=torch.tensor(self.options.mean)[:, None, None],
            std_C11=torch.tensor(self.options.std)[:, None, None],
            augment=augment and self.options.augment == "crop-flip",
            names=images.names,
            notes=images.notes,
        )


def _as_stored(data: ImageData) -> np.ndarray[Any, Any]:
    pixel_NHWC = data.pixel_NCHW.numpy().transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixel_NHWC[..., 0] if pixel_NHWC.shape[3] == 1 else pixel_NHWC)


def _projected_memory(model: ImageModel, deep_BW: Tensor, guide: Guide) -> Tensor:
    """[K, D]: the memory of unit features, made as long as those of the batch are, through the projection."""
    length = torch.linalg.vector_norm(deep_BW.detach().float(), dim=1).mean()
    again_KD: Tensor = model.projection(length * guide.mean_KD)
    return again_KD


def _check_rehearsal(run: RunConfig) -> None:
    method = run.method
    others = max(method.anchor, method.centre, method.target_blend) > 0 or method.readout != "vertex"
    if others or method.memory_source == "vertex":
        raise ConfigError(
            "method.rehearsal towards a frame keeps the class memory from before the projection, where there are "
            "no vertices: set readout = 'vertex', leave anchor, centre and target_blend at 0, and memory_source "
            "other than 'vertex'"
        )


def _view(model: ImageModel, pixel_BCHW: Tensor, guide: Guide) -> View:
    with torch.no_grad():
        feat_BD = model.features(pixel_BCHW)
        return View(feat_BD=feat_BD, logit_BK=logits(model.head, feat_BD, guide))


def _as_image_model(model: nn.Module) -> ImageModel:
    assert isinstance(model, ImageModel)
    return model


def _split_with(part: Part, split: SplitSection | None) -> SplitSection:
    if split is None:
        raise DataError(
            f"part {part.index} of {part.of} was asked for, but the run file has no [split]: leave out "
            "--partition, all of the data is this client's."
        )
    if part.of != split.parts or not 0 <= part.index < part.of:
        raise DataError(
            f"part {part.index} of {part.of} does not exist: the run's split has parts 0 to {split.parts - 1} of "
            f"{split.parts} (split.parts)."
        )
    return split
