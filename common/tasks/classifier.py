"""The contract of a task with classes: every method but `backbone` and `read` is given.

Label space, frozen frame, class memory, features, read-out, accuracy. A task of this kind says which layers see
its inputs (`backbone`) and how its data is read (`read`); docs/tasks.md shows one in thirty lines. Knows no kind
of data.

Legend: B batch, D feature width, W width before the projection, K label space, N examples.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError, DataError, ProtocolError
from fednc.common.learning.frame import Frame, draw_frame, unit
from fednc.common.learning.heads import Head, build_head, logits
from fednc.common.learning.losses import View, objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Batch, Part, Task, TaskData, TaskOptions
from fednc.common.tasks.metrics import Accuracy, CrossEntropy, Metric
from fednc.common.tasks.splits import Index, split_digest, split_index
from fednc.common.tasks.tensor_data import UNLABELLED, LabelledTensors

Purpose = Literal["train", "test", "input"]
_PACKED = "npz:"  # data specs of what `pack` wrote


class ClassifierOptions(TaskOptions):
    """The keys of `[task]` that every classifier has."""

    classes: tuple[str, ...] = ()


class LabelledData(Protocol):
    """What a classifier reads: a `TaskData` whose examples have labels."""

    label_N: Tensor

    def select(self, index: Index) -> Self:
        """The examples at `index`, in that order."""


class ClassifierModel(nn.Module):
    """Backbone, projection and head. Calling the model gives its features; the head is applied by the losses."""

    def __init__(self, backbone: nn.Module, projection: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.head = head

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, D], not normalised."""
        feat_BD: Tensor = self.projection(self.backbone(inputs))
        return feat_BD

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, D]."""
        return self.features(inputs)


class ClassifierTask(Task):
    """A task with classes. Batches are (inputs [B, ...], int64 labels [B])."""

    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = (Accuracy, CrossEntropy)

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        if self.label_space < len(self.class_names):
            raise ConfigError(
                f"frame.vertices: {self.label_space} vertices for {len(self.class_names)} classes. Give it at "
                "least as many, or 0 for exactly as many."
            )
        if self._rehearses:
            _check_rehearsal(run)

    def _check_method(self) -> None:
        """Every method serves a classifier."""

    # ---- what a task of this kind must say -------------------------------------------------------------------

    @abstractmethod
    def backbone(self) -> tuple[nn.Module, int]:
        """(layers from inputs [B, ...] to [B, W], W), initialised from torch's global generator."""

    @abstractmethod
    def read(self, spec: str, purpose: Purpose) -> Any:
        """The labelled examples at `spec`; `labelled` makes them of tensors. Raises DataError.

        Args:
            purpose: training examples; test examples; examples to predict on, which may have no labels.
        """

    # ---- classes ---------------------------------------------------------------------------------------------

    @property
    def class_names(self) -> tuple[str, ...]:
        """`task.classes`; class i has vertex i of the frame."""
        names: tuple[str, ...] = self.options.classes  # type: ignore[attr-defined]
        return names

    @property
    def label_space(self) -> int:
        """K: vertices of the frame, reserved ones included."""
        return self.run.frame.vertices or len(self.class_names)

    def frame(self, seed: int) -> Frame:
        """The frozen frame, drawn by `seed`. Raises ConfigError: too narrow."""
        return draw_frame(self.label_space, self.run.frame.dim, seed, self.run.frame.kind)

    @property
    def _rehearses(self) -> bool:
        """Whether the memory is that of features before the projection, for the projection to rehearse.

        Trained class vectors rehearse features as they are; frozen ones leave nothing but the projection.
        """
        return self.run.method.rehearsal > 0 and self.run.method.head == "frame"

    @property
    def memory_dim(self) -> int:
        """D, or the backbone's width for a memory from before the projection."""
        if not self._rehearses:
            return self.run.frame.dim
        with torch.device("meta"):  # nothing is drawn and no memory taken
            return self.backbone()[1]

    # ---- data ------------------------------------------------------------------------------------------------

    def labelled(
        self,
        inputs: Tensor,
        labels: Sequence[str] | Tensor | None,
        names: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> LabelledTensors:
        """Examples made of inputs [N, ...] and what they are: names of classes, numbers of classes, or unknown.

        Raises:
            DataError: a label that is no class of the run, or another number of labels than of inputs.
        """
        if labels is None:
            label_N = torch.full((len(inputs),), UNLABELLED)
        elif isinstance(labels, Tensor):
            label_N = labels.long()
        else:
            label_N = self._numbers_of(labels)
        if len(label_N) != len(inputs):
            raise DataError(f"{len(inputs)} examples have {len(label_N)} labels; give one label for each example")
        if len(label_N) and not -1 <= int(label_N.min()) <= int(label_N.max()) < len(self.class_names):
            raise DataError(f"a label is not among 0 to {len(self.class_names) - 1}, the run's classes")
        return LabelledTensors(
            tensors=(inputs, label_N), label_space=self.label_space, names=tuple(names), notes=tuple(notes)
        )

    def _numbers_of(self, labels: Sequence[str]) -> Tensor:
        place = {name: number for number, name in enumerate(self.class_names)}
        odd = sorted(set(labels) - set(place))
        if odd:
            raise DataError(
                f"labels {', '.join(map(repr, odd[:5]))} are not classes of the run; task.classes names "
                f"{', '.join(self.class_names[:10])}"
            )
        return torch.tensor([place[label] for label in labels], dtype=torch.int64)

    def _read(self, spec: str, purpose: Purpose) -> Any:
        """As `read`, and what `pack` wrote; a task that packs in a way of its own reads that itself."""
        if spec.startswith(_PACKED) and type(self).pack is ClassifierTask.pack:
            return self._unpacked(spec, "train" if purpose == "train" else "test")
        return self.read(spec, purpose)

    def _unpacked(self, spec: str, part: str) -> LabelledTensors:
        try:
            arrays = npz_files.read_npz(spec.removeprefix(_PACKED))
            classes = tuple(map(str, arrays["classes"]))
            inputs, label_N = (torch.from_numpy(arrays[f"{name}_{part}"]) for name in "xy")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            raise DataError(f"{spec}: not data that this task has packed ({type(e).__name__}: {e})") from e
        if classes != self.class_names:
            raise DataError(f"{spec}: packed with classes {classes[:10]}, the run has {self.class_names[:10]}")
        return self.labelled(inputs, label_N)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training examples at `spec`, or one part of them. Raises DataError."""
        data = self._read(spec, "train")
        if part is None:
            return _as_data(data)
        split = split_with(part, split)
        return _as_data(data.select(self._parts(data.label_N.numpy(), split)[part.index]))

    def _parts(self, label_N: Index, split: SplitSection) -> list[Index]:
        """Which examples each part has."""
        return split_index(label_N, split)

    def load_test(self, spec: str) -> TaskData:
        """The test examples at `spec`. Raises DataError."""
        return _as_data(self._read(spec, "test"))

    def load_input(self, spec: str) -> TaskData:
        """The examples at `spec` to predict on. Raises DataError."""
        return _as_data(self._read(spec, "input"))

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(split_index(self._read(spec, "train").label_N.numpy(), split))

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """x_train, y_train, x_test, y_test, and the class names that the labels count."""
        assert isinstance(train, LabelledTensors)
        assert isinstance(test, LabelledTensors)
        return {
            "x_train": train.tensors[0].numpy(),
            "y_train": train.label_N.numpy(),
            "x_test": test.tensors[0].numpy(),
            "y_test": test.label_N.numpy(),
            "classes": np.array(self.class_names),
        }

    # ---- model and training ----------------------------------------------------------------------------------

    def build_model(self) -> ClassifierModel:
        """The head is drawn last, so that all methods start from the same backbone and projection."""
        backbone, width = self.backbone()
        projection = self.projection(width)
        return ClassifierModel(
            backbone, projection, build_head(self.run.method, self.run.frame.dim, self.label_space)
        )

    def projection(self, width: int) -> nn.Module:
        """[B, W] into the frame's space [B, D]; no activation at the end, as vertices lie everywhere."""
        return nn.Linear(width, self.run.frame.dim)

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of `guide.method` on the features of a batch."""
        inputs, label_B = batch
        found = as_classifier(model)
        views = {name: _view(as_classifier(m), inputs, guide) for name, m in guide.companions.items()}
        deep_BW = found.backbone(inputs)
        feat_BD = found.projection(deep_BW)
        again_KD = _projected_memory(found, deep_BW, guide) if self._rehearses else None
        return objective(feat_BD, label_B, found.head, guide, again_KD, views)

    # ---- features and read-out -------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D], labels [B]) for the class memory; no gradients needed.

        Before the projection where that is what the memory is made of.
        """
        if self._rehearses:
            return unit(as_classifier(model).backbone(batch[0])), batch[1]
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D] in the frame's space, labels [B]): what is compared with the vertices."""
        return unit(as_classifier(model).features(batch[0])), batch[1]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K], -inf beyond today's classes: argmax predicts, softmax is the confidence."""
        found = as_classifier(model)
        return readout_logits(found.features(inputs), found.head, guide, self._classes_in(guide))

    def _classes_in(self, guide: Guide) -> int:
        """Classes that exist."""
        return len(self.class_names) if guide.classes is None else guide.classes

    def predict(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """The scores [B, K]."""
        return self.scores(model, inputs, guide)

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K], labels [B]) of the labelled examples."""
        known_B = batch[1] != UNLABELLED
        return self.scores(model, self.inputs_of(batch), guide)[known_B].float(), batch[1][known_B]


def classifier(task: Task) -> ClassifierTask:
    """`task`, which must have classes. Raises ProtocolError: it has none, and class sums were asked for."""
    if not isinstance(task, ClassifierTask):
        raise ProtocolError(f"task {task.name!r} has no classes, so there are no sums of their features")
    return task


def split_with(part: Part, split: SplitSection | None) -> SplitSection:
    """The run's split. Raises DataError: it has none, or another number of parts."""
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


def as_classifier(model: nn.Module) -> ClassifierModel:
    """`model`, which `build_model` of a classifier made."""
    assert isinstance(model, ClassifierModel)
    return model


def _as_data(data: Any) -> TaskData:
    assert isinstance(data, TaskData), "ClassifierTask.read must return a TaskData with labels"
    return data


def _projected_memory(model: ClassifierModel, deep_BW: Tensor, guide: Guide) -> Tensor:
    """[K, D]: the memory of unit features, made as long as those of the batch are, through the projection."""
    length = torch.linalg.vector_norm(deep_BW.detach().float(), dim=1).mean()
    again_KD: Tensor = model.projection(length * guide.mean_KD)
    return again_KD


def _check_rehearsal(run: RunConfig) -> None:
    method = run.method
    others = max(method.anchor, method.centre, method.target_blend) > 0 or method.reads_memory
    if others or method.memory_source == "vertex":
        raise ConfigError(
            "method.rehearsal towards a frame keeps the class memory from before the projection, where there are "
            "no vertices: set readout = 'vertex', leave anchor, centre and target_blend at 0, and memory_source "
            "other than 'vertex'"
        )


def _view(model: ClassifierModel, inputs: Tensor, guide: Guide) -> View:
    with torch.no_grad():
        feat_BD = model.features(inputs)
        return View(feat_BD=feat_BD, logit_BK=logits(model.head, feat_BD, guide))
