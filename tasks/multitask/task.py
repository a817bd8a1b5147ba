"""Several dense tasks at once: one model, and clients that have labels for some of the tasks only.

`MultitaskClassifier` has segmentation among its tasks, and so frame and class memory; `MultitaskTask` has not.
Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: B batch, C channels, H height, W width, D feature width, E width before the projection, K label space,
P labelled pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import build_head
from fednc.common.learning.losses import objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Purpose, Stepper, Task, TaskData
from fednc.common.tasks.classifier import ClassifierTask, views_of
from fednc.common.tasks.metrics import EXAMPLES, Metric, Stats, refuse_unless
from fednc.tasks.dense import pictures
from fednc.tasks.dense.dataset import DenseBatch, DenseData, most_members, sampled
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.metrics import PixelLoss
from fednc.tasks.dense.task import DenseTask
from fednc.tasks.multitask import backbones, metrics, people
from fednc.tasks.multitask.data import labelled, part_counts, read_labelled, targets_of
from fednc.tasks.multitask.kinds import KINDS, PARTS, SEGMENTATION
from fednc.tasks.multitask.losses import loss_of
from fednc.tasks.multitask.model import MultitaskModel, Shape, task_of
from fednc.tasks.multitask.options import MultitaskOptions, MultitaskSplit

_NECK = 8  # a head has an eighth of the joined maps' channels, as published


class MultitaskTask(DenseTask):
    """Dense tasks without segmentation, and what both kinds of run share.

    Batches are (normalised pictures [B, C, H, W], the map of each task).
    """

    name = "multitask"
    Options = MultitaskOptions
    Split = MultitaskSplit
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = ()  # they depend on the options; see `metrics_of`
    summary_metrics = ("miou", "part_miou", "saliency_f", "normal_error", "depth_rmse", "edge_f")
    body = "backbone."
    options: MultitaskOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.measured_by = tuple(metric for found in self.metrics_of.values() for metric in found)
        self._check_primary()
        if not run.train.epochs:
            raise ConfigError(f"train.epochs = 0: task {self.name!r} must train; set it to 1 or more")

    @classmethod
    def for_run(cls, run: RunConfig) -> Task:
        """The task with classes if the run file names segmentation among its tasks, which it does by default."""
        wanted = (run.task.model_extra or {}).get("tasks", (SEGMENTATION,))
        with_classes = not isinstance(wanted, list | tuple) or SEGMENTATION in wanted
        return MultitaskClassifier(run) if with_classes else MultitaskTask(run)

    def _check_primary(self) -> None:
        """Checked when the metrics are known."""
        if self.measured_by:
            super()._check_primary()

    @cached_property
    def metrics_of(self) -> dict[str, tuple[Metric, ...]]:
        """The metrics of each task of the run."""
        options, pixels = self.options, self.options.size[0] * self.options.size[1]
        every: dict[str, tuple[Metric, ...]] = {
            SEGMENTATION: (metrics.ClassIoU(pixels), PixelLoss(pixels)),
            PARTS: (metrics.PartIoU(pixels, options.parts),),
            "saliency": (metrics.saliency_f(pixels),),
            "normals": (metrics.NormalError(pixels),),
            "depth": (metrics.DepthRMSE(pixels),),
            "edges": (metrics.edge_f(pixels, options.edge_pixels),),
        }
        return {task: every[task] for task in options.tasks}

    # ---- data ------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> DenseData:
        """The pictures at `spec`; for prediction also a picture file or a folder of them. Raises DataError."""
        return read_labelled(spec, purpose, self.options, self.label_space)

    def with_labels_of(self, mine: DenseData, split: SplitSection, part: int) -> DenseData:
        """The labels of the tasks that the part owns."""
        owners = split.owners if isinstance(split, MultitaskSplit) else ()
        if not owners:
            return mine
        return mine.without([KINDS[task].map for task in self.options.tasks if task not in owners[part]])

    def preprocessing(self) -> dict[str, Any]:
        """Also where the prediction of each task is. Any size works."""
        outputs = {name: [span.start, span.stop] for name, span in self.spans.items()}
        return {**super().preprocessing(), "outputs": outputs}

    # ---- model -----------------------------------------------------------------------------------------------

    def backbone(self) -> tuple[nn.Module, int]:
        """(a module from pictures to a list of feature maps, the channels of all of them together)."""
        options = self.options
        return backbones.build(options.backbone, options.norm, options.channels, options.width, options.stride)

    def build_model(self) -> MultitaskModel:
        """A new model."""
        backbone, given = self.backbone()
        shape = self._shape(given)
        return MultitaskModel(backbone, shape, *self._head(shape.neck))

    def _shape(self, given: int) -> Shape:
        options = self.options
        return Shape(
            channels=self._channels,
            private=frozenset(options.private),
            given=given,
            width=options.channels_each,
            neck=_neck(given),
            depth=options.depth,
            heads=options.heads,
            norm=options.norm,
            interaction=options.interaction,
        )

    @property
    def _channels(self) -> dict[str, int]:
        """By task, the channels of its prediction; 0 for segmentation, whose scores come from the head."""
        given = {PARTS: len(self.options.parts)}
        return {task: given.get(task, KINDS[task].channels) for task in self.options.tasks}

    def _head(self, width: int) -> tuple[nn.Module, nn.Module, Tensor | None]:
        """(projection, head, class weights) of segmentation; nothing without it."""
        del width
        return nn.Identity(), nn.Identity(), None

    # ---- what is sent and aggregated -------------------------------------------------------------------------

    def aggregation(self, key: str) -> Aggregation:
        """What belongs to one task is averaged over its owners, or stays on them; the rest over all clients."""
        task = task_of(key)
        if not task:
            return super().aggregation(key)
        return Aggregation.LOCAL if task in self.options.private else Aggregation.OWNERS

    @property
    def parts(self) -> tuple[str, ...]:
        """The tasks."""
        return self.options.tasks

    def holdings(self, data: TaskData) -> Mapping[str, int]:
        """Pictures with labels of each task."""
        assert isinstance(data, DenseData)
        return labelled(data, self.options.tasks)

    def label_counts(self, data: TaskData) -> Mapping[str, Mapping[str, int]]:
        """The tasks, and the values of the part map."""
        assert isinstance(data, DenseData)
        parts = {"parts": part_counts(data, self.options.parts)} if PARTS in self.options.tasks else {}
        return {"tasks": self.holdings(data), **parts}

    def owned(self, data: TaskData) -> Mapping[str, int]:
        """Each task's layers are trained with the pictures that have its labels."""
        counts = self.holdings(data)
        keys = {key: counts[task] for key in self._keys if (task := task_of(key)) in counts}
        return {key: count for key, count in keys.items() if count and self.aggregation(key) == Aggregation.OWNERS}

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        with torch.device("meta"):
            return tuple(self.build_model().state_dict())

    def stretch(self, alike: float) -> float:
        """Changes for different tasks are nearly orthogonal: the mean of m is shorter than each by sqrt(m).

        At most for as many groups of clients as there are tasks, whatever clients say that they own.
        """
        return max(alike, 1 / len(self.options.tasks)) ** -0.5 if self.options.stretch else 1.0

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """The layers behind the interaction."""
        return frozenset(key for key in model.state_dict() if task_of(key, ("necks", "outs")))

    # ---- training --------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over the tasks of which the batch has labels, and the unweighted loss of each."""
        found, truth = as_multitask(model), targets_of(batch, self.options.tasks)
        if not truth:
            anything = found.maps(batch[0], self.options.tasks[:1])[self.options.tasks[0]]
            return anything.sum() * 0.0, {}
        maps = found.maps(batch[0], tuple(truth))
        total, parts = batch[0].new_zeros(()), dict[str, Tensor]()
        for task, value in maps.items():
            loss, more = self._loss_of(task, value, truth[task], found, batch[0], guide)
            total = total + self._weight(task) * loss
            parts |= {task: loss.detach(), **more}
        return total, parts

    def _loss_of(
        self, task: str, value: Tensor, truth: Tensor, model: MultitaskModel, inputs: Tensor, guide: Guide
    ) -> tuple[Tensor, dict[str, Tensor]]:
        del model, inputs, guide
        return loss_of(task, self.options.edge_weight)(value.float(), truth), {}

    def _weight(self, task: str) -> float:
        return dict(self.options.weights).get(task, KINDS[task].weight)  # type: ignore[call-overload, no-any-return]

    def training_step(
        self, model: nn.Module, batch: DenseBatch, guide: Guide, trainer: Stepper
    ) -> dict[str, Tensor]:
        """As every task; notes which private tasks have been trained here."""
        found = super().training_step(model, batch, guide, trainer)
        truth = targets_of(batch, self.options.tasks) if self.options.private else {}
        for task in self.options.private:
            if task in truth:
                as_multitask(model).trained[task].done.fill_(True)  # type: ignore[operator]
        return found

    # ---- evaluation ------------------------------------------------------------------------------------------

    @property
    def spans(self) -> dict[str, slice]:
        """The channels of each task in what `predict` returns, segmentation first."""
        counts = {SEGMENTATION: len(self.class_names)} if self.class_names else {}
        counts |= {task: each for task, each in self._channels.items() if task != SEGMENTATION}
        found, start = {}, 0
        for task, count in counts.items():
            found[task] = slice(start, start + count)
            start += count
        return found

    def predict(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """The maps of all tasks [B, channels, H, W], as `spans` says.

        Scores of classes and parts, log-odds of edges and saliency, depths of 0 or more, unit normals. NaN for a
        private task that was not trained here. The loss weighs edges more than other pixels; their log-odds are
        corrected for that, so that an edge is one that is more likely than not.
        """
        found = as_multitask(model)
        maps = found.maps(inputs, self.options.tasks)
        return torch.cat([self._shown(task, maps[task], found, guide) for task in self.spans], dim=1)

    def _shown(self, task: str, value: Tensor, model: MultitaskModel, guide: Guide) -> Tensor:
        del guide
        if task == "depth":
            value = value.clamp_min(0)
        if task == "edges":
            value = value - math.log(self.options.edge_weight / (1 - self.options.edge_weight))
        if task == "normals":
            value = nn.functional.normalize(value, dim=1)
        if task in self.options.private:
            value = torch.where(model.trained[task].done, value, torch.nan)  # type: ignore[arg-type]
        return value

    def outputs(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(the maps of all tasks, the truth of the first one). Metrics need more: see `statistics`."""
        return self.predict(model, batch[0], guide).float(), batch[1]

    def statistics(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> Stats:
        """The sums of the metrics of every task; zero for tasks of which the batch has no labels."""
        output = self.predict(model, batch[0], guide).float()
        found = {EXAMPLES: torch.tensor(len(batch[0]))}
        truth = targets_of(batch, self.options.tasks)
        for task, own in self.metrics_of.items():
            value = output[:, self.spans[task]]
            is_untrained = task in self.options.private and bool(value.isnan().all())
            is_known = task in truth and not is_untrained
            for metric in own:
                found |= metric.sums(value, truth[task]) if is_known else metric.zeros(self._scores_of(task))
        return {name: value.cpu() for name, value in found.items()}

    def no_statistics(self) -> Stats:
        """See Task."""
        found = {EXAMPLES: torch.tensor(0)}
        for task, own in self.metrics_of.items():
            for metric in own:
                found |= metric.zeros(self._scores_of(task))
        return found

    def _scores_of(self, task: str) -> int:
        return len(self.class_names) if task == SEGMENTATION else 0

    # ---- for people ------------------------------------------------------------------------------------------

    def displayed(self, model: nn.Module, batch: DenseBatch) -> Tensor:
        """At the size of the pictures, with normals that are unit vectors again."""
        output, span = super().displayed(model, batch), self.spans.get("normals")
        if span and tuple(batch[0].shape[2:]) != tuple(self.options.size):
            output[:, span] = nn.functional.normalize(output[:, span], dim=1)
        return output

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """For each picture what is predicted of each task, in a few words."""
        return people.described(self._by_task(output), self.class_names, self.options.parts)

    def prediction_files(self, batch: DenseBatch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For each picture an overlay of all tasks, and a file of each as the reader of folders takes it."""
        return people.files(self._pages(batch, output), self._by_task(output), names)

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`pictures.png`: test pictures with each task; `interaction.png`: which task attends to which."""
        assert isinstance(data, DenseData)
        batches = list(data.select(pictures.evenly_chosen(data.examples)).eval_batches(pictures.SHOWN))
        pages = self._pages(batches[0], self.predict(model, batches[0][0], guide).float())
        return people.examples(pages, as_multitask(model), batches[0][0])

    def _pages(self, batch: DenseBatch, output: Tensor) -> list[Image.Image]:
        truth: dict[str, Tensor] = dict(zip(self.options.tasks, batch[1:], strict=True))
        pixels = [people.picture(each, self.options) for each in batch[0]]
        return people.pages(pixels, self._by_task(output), truth, self.class_names, self.options.parts)

    def _by_task(self, output: Tensor) -> dict[str, Tensor]:
        """The predictions of the tasks that were trained."""
        found = {task: output[:, self.spans[task]] for task in self.options.tasks}
        return {task: value for task, value in found.items() if not bool(value.isnan().all())}


class MultitaskClassifier(MultitaskTask, ClassifierTask):
    """Dense tasks with segmentation among them: frame and class memory are those of pixels."""

    rehearses_with_frame = False

    @property
    def width(self) -> int:
        """E."""
        with torch.device("meta"):
            return _neck(self.backbone()[1])

    @property
    def members_per_example(self) -> int:
        """Pixels of a picture that sums of features are made of."""
        options = self.options
        return most_members(options.memory_pixels, self.label_space, options.size[0] * options.size[1])

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """A class that fewer than `least` pictures have is left out."""
        return {name: torch.where(data.having_K >= least, data.count_K, 0) for name in self.no_data_sums()}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """A class has at most the pixels that the announced pictures have."""
        most = announced * self.members_per_example
        for count_K in sums.values():
            fits = bool(((count_K >= 0) & (count_K <= most)).all()) and int(count_K.sum()) <= most
            refuse_unless(fits, "the classes have more pixels than the pictures")

    def _head(self, width: int) -> tuple[nn.Module, nn.Module, Tensor | None]:
        head = build_head(self.run.method, self.run.frame.dim, self.label_space)
        return self.projection(width), head, self._initial_weights()

    def _loss_of(
        self, task: str, value: Tensor, truth: Tensor, model: MultitaskModel, inputs: Tensor, guide: Guide
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if task != SEGMENTATION:
            return super()._loss_of(task, value, truth, model, inputs, guide)
        if model.class_weight is not None:
            guide = replace(guide, class_weight_K=model.class_weight)
        keep_BHW = truth != VOID
        views = views_of(guide, lambda model: model.features(inputs)[keep_BHW])
        feat_PD = value.permute(0, 2, 3, 1)[keep_BHW]
        return objective(feat_PD, truth[keep_BHW], model.head, guide, None, views)

    # ---- features and read-out -------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: DenseBatch) -> tuple[Tensor, Tensor]:
        """(unit features [P, D], labels [P]) of the pixels that sums of features are made of."""
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: DenseBatch) -> tuple[Tensor, Tensor]:
        """As `embed`: the memory is in the frame's space."""
        label_BHW = self._labels(batch)
        place_P = sampled(label_BHW, self.label_space, self.options.memory_pixels)
        feat_BHWD = as_multitask(model).features(batch[0])
        return unit(feat_BHWD.flatten(0, 2)[place_P]), label_BHW.flatten()[place_P]

    def _labels(self, batch: DenseBatch) -> Tensor:
        return batch[1 + self.options.tasks.index(SEGMENTATION)]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K, H, W] of the pixels, -inf beyond the classes."""
        found = as_multitask(model)
        return self._scores(found.features(inputs), found, guide)

    def _scores(self, feat_BHWD: Tensor, model: MultitaskModel, guide: Guide) -> Tensor:
        score_PK = readout_logits(feat_BHWD.flatten(0, 2), model.head, guide, self._classes_in(guide))
        return score_PK.reshape(*feat_BHWD.shape[:3], -1).permute(0, 3, 1, 2)

    def _shown(self, task: str, value: Tensor, model: MultitaskModel, guide: Guide) -> Tensor:
        if task != SEGMENTATION:
            return super()._shown(task, value, model, guide)
        return self._scores(value.permute(0, 2, 3, 1), model, guide)[:, : len(self.class_names)]

    @property
    def further_channels(self) -> int:
        """Those of the other tasks."""
        return sum(each for task, each in self._channels.items() if task != SEGMENTATION)

    def outputs(self, model: nn.Module, batch: DenseBatch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K, H, W], labels [B, H, W]) of the segmentation, by which confidences are calibrated."""
        return self.scores(model, batch[0], guide).float(), self._labels(batch)


def as_multitask(model: nn.Module) -> MultitaskModel:
    """`model`, which must come from `build_model` of this task."""
    assert isinstance(model, MultitaskModel)
    return model


def _neck(given: int) -> int:
    """E: an eighth of the joined maps' channels, rounded up to what normalisation divides; 16 at least."""
    return max(16, -(-given // (_NECK * 8)) * 8)
