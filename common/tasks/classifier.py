"""The contract of a task with classes. A task only has to define `backbone` and `read`.

Provides label space, frozen frame, class memory, features, read-out and accuracy. A task defines which layers
process its inputs (`backbone`) and how its data is read (`read`); docs/tasks.md shows one in thirty lines. Knows
no kind of data.

Legend: B batch, D feature width, W width before the projection, K label space, N examples.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError, DataError, ProtocolError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.fitted_projection import fitted_projection
from fednc.common.learning.frame import Frame, draw_frame, unit
from fednc.common.learning.heads import Head, build_head, logits
from fednc.common.learning.losses import View, objective
from fednc.common.learning.readout import READOUTS, readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import npz_files
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Batch, Part, Purpose, Task, TaskData, TaskOptions, split_with
from fednc.common.tasks.metrics import Accuracy, CrossEntropy, Metric, Stats, refuse_unless
from fednc.common.tasks.splits import Index, split_digest, split_index
from fednc.common.tasks.tensor_data import UNLABELLED, LabelledTensors

_PACKED = "packed:"  # data specs of what `pack` wrote; every other spec is the task's own


CLASS_WEIGHT, CLASS_COUNT = "class_weight", "class_count"  # key of the model's state; name of the sum
BALANCED = "balanced"
PROJECTION = "projection."  # prefix of its keys


class ClassifierOptions(TaskOptions):
    """The keys of `[task]` that every classifier has."""

    classes: tuple[str, ...] = ()
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="weight of each class in the loss: a list in the order of `classes`, or `balanced`: inverse "
        "to the number of its examples over all sites, which are counted before round 1; empty: all weigh "
        "the same",
    )


class ClassifierModel(nn.Module):
    """Backbone, projection and head. Calling the model returns its features; the losses apply the head."""

    class_weight: Any  # a buffer [K], or None

    def __init__(
        self, backbone: nn.Module, projection: nn.Module, head: Head, weight_K: Tensor | None = None
    ) -> None:
        """`weight_K`: of each class in the loss; None: all weigh the same, and the state has no such key."""
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.head = head
        self.register_buffer(CLASS_WEIGHT, weight_K)

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
    body: ClassVar[str] = "backbone."
    rehearses_with_frame: ClassVar[bool] = True  # keeps a class memory from before the projection

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        if self.label_space < len(self.class_names):
            raise ConfigError(
                f"frame.vertices: {self.label_space} vertices for {len(self.class_names)} classes. Set it to at "
                "least the number of classes, or to 0 for exactly that number."
            )
        if self._rehearses:
            _check_rehearsal(run, self.rehearses_with_frame)
        if run.method.memory_space == "backbone":
            _check_memory_space(run, self._reads_backbone)
        if run.method.projection != "trained" and type(self).projection is not ClassifierTask.projection:
            raise ConfigError(
                f"method.projection = {run.method.projection!r}: the projection of task {run.task.name!r} is not "
                "one linear layer. Leave the key out."
            )
        self._check_class_weights()

    def _check_class_weights(self) -> None:
        """Raises ConfigError: there are not as many as classes, or the task cannot count its classes."""
        given = self._class_weights
        if given and given != BALANCED and len(given) != len(self.class_names):
            raise ConfigError(
                f"task.class_weights has {len(given)} weights for {len(self.class_names)} classes: give one for "
                f"each class, or {BALANCED!r}"
            )
        if not given:
            return
        if self.run.sessions:
            raise ConfigError(
                "task.class_weights are for classes that are all there from the start: leave them out, or "
                "[[sessions]]"
            )
        is_fixed = self.aggregation(CLASS_WEIGHT) == Aggregation.FIXED
        if not is_fixed or (given == BALANCED and CLASS_COUNT not in self.no_data_sums()):
            raise ConfigError(
                f"task.class_weights: task {self.name!r} has `aggregation` or sums of the data of its own without "
                "those of ClassifierTask: call super() in them"
            )

    @property
    def _class_weights(self) -> str | tuple[float, ...]:
        """`task.class_weights`, for options that have it."""
        given: str | tuple[float, ...] = getattr(self.options, "class_weights", ())
        return given

    def _check_method(self) -> None:
        """Every method works with a classifier."""

    # ---- what a classifier must define -----------------------------------------------------------------------

    @abstractmethod
    def backbone(self) -> tuple[nn.Module, int]:
        """(layers from inputs [B, ...] to [B, W], W). Initialised from torch's global generator."""

    @abstractmethod
    def read(self, spec: str, purpose: Purpose) -> Any:
        """The labelled examples at `spec`; `labelled` builds them from tensors. Raises DataError.

        Args:
            purpose: `train`; `test`; or `input` for examples to predict, which may have no labels.
        """

    # ---- classes ---------------------------------------------------------------------------------------------

    @property
    def class_names(self) -> tuple[str, ...]:
        """`task.classes`; class i has vertex i of the frame."""
        names: tuple[str, ...] = self.options.classes  # type: ignore[attr-defined]
        return names

    @property
    def label_space(self) -> int:
        """K: number of vertices of the frame, including reserved ones."""
        return self.run.frame.vertices or len(self.class_names)

    def frame(self, seed: int) -> Frame:
        """The frozen frame, drawn with `seed`. Raises ConfigError if it is too narrow."""
        return draw_frame(self.label_space, self.feature_dim, seed, self.run.frame.kind)

    @property
    def feature_dim(self) -> int:
        """D: `frame.dim`, or the backbone's width if nothing is trained: a drawn projection would only lose."""
        return self.run.frame.dim if self.run.train.epochs else self.width

    @property
    def width(self) -> int:
        """W. Draws no numbers and allocates no memory."""
        with torch.device("meta"):
            return self.backbone()[1]

    @property
    def _rehearses(self) -> bool:
        """Whether the memory holds features from before the projection, so that the projection rehearses them.

        Trained class vectors can rehearse features directly. If they are frozen, only the projection can learn.
        """
        return self.run.method.rehearsal > 0 and self.run.method.head == "frame"

    @property
    def _memory_is_deep(self) -> bool:
        """Whether the memory is taken before the projection."""
        return self._rehearses or self.run.method.memory_space == "backbone"

    @property
    def _reads_backbone(self) -> bool:
        """Whether this task can keep and read out a memory of the backbone's features: it leaves both to us."""
        ours, own = ClassifierTask, type(self)
        return (own.embed, own.scores, own.memory_dim) == (ours.embed, ours.scores, ours.memory_dim)

    @property
    def memory_dim(self) -> int:
        """D, or the backbone's width if the memory is taken before the projection."""
        return self.width if self._memory_is_deep else self.feature_dim

    # ---- data ------------------------------------------------------------------------------------------------

    def labelled(
        self,
        inputs: Tensor,
        labels: Sequence[str] | Tensor | None,
        names: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> LabelledTensors:
        """Examples with inputs [N, ...] and labels: names of classes, numbers of classes, or None if unknown.

        Raises:
            DataError: a label is not a class of the run, or there are not as many labels as inputs.
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
            raise DataError(f"a label is outside 0 to {len(self.class_names) - 1}, the run's classes")
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
        """As `read`, and what `pack` wrote."""
        if spec.startswith(_PACKED) and type(self).pack is ClassifierTask.pack:
            return self._unpacked(spec, "train" if purpose == "train" else "test")
        return self.read(spec, purpose)

    def _unpacked(self, spec: str, part: str) -> LabelledTensors:
        try:
            arrays = npz_files.read_npz(spec.removeprefix(_PACKED))
            classes = tuple(map(str, arrays["classes"]))
            inputs, label_N = (torch.from_numpy(arrays[f"{name}_{part}"]) for name in "xy")
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as e:
            raise DataError(f"{spec}: not written by this task's `pack` ({type(e).__name__}: {e})") from e
        if classes != self.class_names:
            raise DataError(f"{spec}: packed with classes {classes[:10]}, but the run has {self.class_names[:10]}")
        return self.labelled(inputs, label_N)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training examples at `spec`, or one part of them. Raises DataError."""
        data = self._read(spec, "train")
        if part is None:
            return _as_data(data)
        split = split_with(part, split)
        return _as_data(data.select(self._parts(data.label_N.numpy(), split)[part.index]))

    def _parts(self, label_N: Index, split: SplitSection) -> list[Index]:
        """The examples of each part."""
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
        """x_train, y_train, x_test, y_test, and the class names that the labels index."""
        if not (isinstance(train, LabelledTensors) and isinstance(test, LabelledTensors)):
            return super().pack(train, test)
        return {
            "x_train": train.tensors[0].numpy(),
            "y_train": train.label_N.numpy(),
            "x_test": test.tensors[0].numpy(),
            "y_test": test.label_N.numpy(),
            "classes": np.array(self.class_names),
        }

    def packed_spec(self, path: Path) -> str:
        """A spec that never reaches `read`, unless this task packs in a way of its own."""
        return f"{_PACKED}{path}" if type(self).pack is ClassifierTask.pack else super().packed_spec(path)

    # ---- model and training ----------------------------------------------------------------------------------

    def build_model(self) -> ClassifierModel:
        """A new model. The head is drawn last, so that all methods start from the same backbone and projection."""
        backbone, width = self.backbone()
        projection = self.projection(width) if self.run.train.epochs else nn.Identity()
        head = build_head(self.run.method, self.feature_dim, self.label_space)
        return ClassifierModel(backbone, projection, head, self._initial_weights())

    def _initial_weights(self) -> Tensor | None:
        """[K]: the weights of the run file, or 1 until the classes are counted; None: the loss has no weights."""
        given = self._class_weights
        if not given:
            return None
        weight_K = torch.ones(self.label_space)
        if not isinstance(given, str):
            weight_K[: len(given)] = torch.tensor(given)
        return weight_K

    def aggregation(self, key: str) -> Aggregation:
        """See Task."""
        is_fixed = key.startswith(PROJECTION) and self.run.method.projection != "trained"
        return Aggregation.FIXED if is_fixed or key == CLASS_WEIGHT else super().aggregation(key)

    def from_memory(self, memory: ClassMemory, etf_KD: Tensor) -> dict[str, Tensor]:
        """Tensors of the model that follow from the class memory in closed form; {} if none does, or not yet."""
        if not self.run.method.fits_projection or memory.metric_DD is None:
            return {}
        weight_DW = fitted_projection(memory.mean_KD, memory.seen_K, memory.metric_DD, etf_KD)
        return {f"{PROJECTION}weight": weight_DW, f"{PROJECTION}bias": torch.zeros(len(weight_DW))}

    # ---- sums of the data before round 1: how many examples each class has -----------------------------------

    def no_data_sums(self) -> Stats:
        """See Task. A task with further sums adds them to these."""
        if self._class_weights != BALANCED:
            return {}
        return {CLASS_COUNT: torch.zeros(self.label_space, dtype=torch.int64)}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """See Task."""
        if self._class_weights != BALANCED:
            return {}
        return {CLASS_COUNT: torch.where(data.count_K >= least, data.count_K, 0)}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """See Task."""
        if CLASS_COUNT in sums:
            count_K = sums[CLASS_COUNT]
            fits = bool(((count_K >= 0) & (count_K <= announced)).all()) and int(count_K.sum()) <= announced
            refuse_unless(fits, "the classes have more examples than there are")

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """See Task. Weight n / (classes n_c) of class c, so that the mean weight of an example is 1."""
        if CLASS_COUNT not in sums:
            return
        count_K = sums[CLASS_COUNT].double()
        held_K = count_K > 0
        weight_K = count_K.sum() / (held_K.sum().clamp_min(1) * count_K.clamp_min(1))
        as_classifier(model).class_weight.copy_(torch.where(held_K, weight_K, 1.0))

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """Projection and head."""
        return frozenset(key for key in model.state_dict() if key.startswith((PROJECTION, "head.")))

    def projection(self, width: int) -> nn.Module:
        """Layers from [B, W] to the frame's space [B, D]; no final activation, since vertices point everywhere."""
        return nn.Linear(width, self.run.frame.dim)

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `guide.method` on the features of a batch."""
        inputs, label_B = batch
        found = as_classifier(model)
        if found.class_weight is not None:
            guide = replace(guide, class_weight_K=found.class_weight)
        views = views_of(guide, lambda model: model.features(inputs))
        deep_BW = found.backbone(inputs)
        feat_BD = found.projection(deep_BW)
        again_KD = _projected_memory(found, deep_BW, guide) if self._rehearses else None
        return objective(feat_BD, label_B, found.head, guide, again_KD, views)

    # ---- features and read-out -------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D], labels [B]) for the class memory, without gradients.

        Taken before the projection if the memory is.
        """
        if self._memory_is_deep:
            return unit(as_classifier(model).backbone(batch[0])), batch[1]
        return self.aligned(model, batch)

    def check_class_sums(self, sum_KD: Tensor, count_K: Tensor) -> None:
        """Check a client's sums of what `embed` gives, [K, D] over so many members of each class.

        Their shapes, counts and lengths were checked. A task whose features obey further laws refuses sums that
        break them.

        Raises:
            ProtocolError: no members have such sums. `metrics.refuse_unless` raises it.
        """
        del sum_KD, count_K

    def aligned(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D] in the frame's space, labels [B]), to compare with the vertices."""
        return unit(as_classifier(model).features(batch[0])), batch[1]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K], -inf beyond the current classes: argmax predicts, softmax is the confidence."""
        found, classes = as_classifier(model), self._classes_in(guide)
        if self.run.method.memory_space == "projected":
            return readout_logits(found.features(inputs), found.head, guide, classes)
        deep_BW = found.backbone(inputs)
        return readout_logits(found.projection(deep_BW), found.head, guide, classes, unit(deep_BW))

    def _classes_in(self, guide: Guide) -> int:
        """Number of classes that exist so far."""
        return len(self.class_names) if guide.classes is None else guide.classes

    def predict(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """The scores [B, K]."""
        return self.scores(model, inputs, guide)

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """The predicted class of each example, and the softmax of its score as the confidence."""
        confidence_B, class_B = output.float().softmax(dim=1).max(dim=1)
        pairs = zip(class_B.tolist(), confidence_B.tolist(), strict=True)
        return [{"class": self.class_names[number], "confidence": confidence} for number, confidence in pairs]

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K], labels [B]) of the labelled examples."""
        known_B = batch[1] != UNLABELLED
        return self.scores(model, self.inputs_of(batch), guide)[known_B].float(), batch[1][known_B]


def classifier(task: Task) -> ClassifierTask:
    """`task`, which must be a classifier. Raises ProtocolError if it has no classes."""
    if not isinstance(task, ClassifierTask):
        raise ProtocolError(f"task {task.name!r} has no classes, so there are no sums of their features")
    return task


def as_classifier(model: nn.Module) -> ClassifierModel:
    """`model`, which must come from `build_model` of a classifier."""
    assert isinstance(model, ClassifierModel)
    return model


def _as_data(data: Any) -> TaskData:
    assert isinstance(data, TaskData), "ClassifierTask.read must return a TaskData with labels"
    return data


def _projected_memory(model: ClassifierModel, deep_BW: Tensor, guide: Guide) -> Tensor:
    """[K, D]: projection of the memory of unit features, scaled to the mean length of the batch's features."""
    length = torch.linalg.vector_norm(deep_BW.detach().float(), dim=1).mean()
    again_KD: Tensor = model.projection(length * guide.mean_KD)
    return again_KD


def _check_rehearsal(run: RunConfig, is_possible: bool) -> None:
    method = run.method
    others = max(method.anchor, method.centre, method.target_blend) > 0 or method.reads_memory
    if others or method.memory_source == "vertex":
        raise ConfigError(
            "method.rehearsal with a frame takes the class memory before the projection, where there are no "
            "vertices: set readout = 'vertex', anchor, centre and target_blend to 0, and memory_source to "
            "anything but 'vertex'"
        )
    if not is_possible:
        raise ConfigError(
            "method.rehearsal with a frame takes the class memory before the projection, which this task does "
            "not keep: set method.rehearsal = 0, or method.head = 'cosine'"
        )


def _check_memory_space(run: RunConfig, is_possible: bool) -> None:
    method = run.method
    if not is_possible:
        raise ConfigError(
            f"method.memory_space = 'backbone': task {run.task.name!r} decides itself which features its class "
            "memory has. Leave the key out."
        )
    fits = not method.reads_memory or method.readout_needs.reads_any_space
    if method.trains_with_memory or method.memory_source == "vertex" or not fits:
        usable = ", ".join(repr(each.name) for each in READOUTS if each.reads_any_space)
        raise ConfigError(
            "method.memory_space = 'backbone' takes the class memory before the projection, where there are no "
            f"vertices: set readout to one of {usable}, anchor, centre, rehearsal and target_blend to 0, and "
            "memory_source to anything but 'vertex'"
        )


def views_of(guide: Guide, features: Callable[[ClassifierModel], Tensor]) -> dict[str, View]:
    """How the companions of a method, which are not trained, see a batch.

    Args:
        features: of a companion, [B, D], for the examples or members that count.
    """
    views = {}
    for name, companion in guide.companions.items():
        model = as_classifier(companion)
        with torch.no_grad():
            feat_BD = features(model)
            views[name] = View(feat_BD=feat_BD, logit_BK=logits(model.head, feat_BD, guide))
    return views
