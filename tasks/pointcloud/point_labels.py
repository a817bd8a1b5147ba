"""Point clouds whose points have classes: the parts of a thing, or the things of a scene.

`PointCloudTask` hands over to it if the run file says `labels = "points"`. An example is a cloud, the members of a
class are points. Must not know servers, clients or the link.

Legend: B batch, N clouds, P points, K label space, D feature width, M points for the class memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.frame import unit
from fednc.common.learning.losses import objective
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch, Part, Purpose, TaskData, split_with
from fednc.common.tasks.classifier import ClassifierModel, as_classifier, views_of
from fednc.common.tasks.splits import Index, split_digest, split_index
from fednc.common.tasks.tensor_data import UNLABELLED, count_of, hold_out_index
from fednc.tasks.dense.described import most_frequent
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.metrics import MeanIoU, PixelLoss
from fednc.tasks.pointcloud import readers
from fednc.tasks.pointcloud.cloud_task import CloudTask
from fednc.tasks.pointcloud.dataset import CloudData
from fednc.tasks.pointcloud.metrics import InvarianceError, PointAccuracy, TurnedIoU
from fednc.tasks.pointcloud.network import PointwiseNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class PointLabelledClouds(CloudData):
    """Clouds whose labels are [N, P].

    Attributes:
        memory_points: M; sums of features are made of the first M points of each cloud, which are in random order.
    """

    memory_points: int

    @property
    def count_K(self) -> Tensor:
        """int64 [K], on the CPU: points of each class that sums of features are made of."""
        return count_of(self.label_N[:, : self.memory_points], self.label_space)

    @property
    def _here_NK(self) -> Tensor:
        """bool [N, K]: the classes among the points of each cloud that sums are made of."""
        classes = torch.arange(self.label_space, device=self.label_N.device)
        return (self.label_N[:, : self.memory_points, None] == classes).any(dim=1)

    @property
    def having_K(self) -> Tensor:
        """int64 [K]: clouds with at least one such point of each class."""
        return self._here_NK.sum(dim=0).cpu()

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """Points and clouds of each class."""
        return {"points": count_of(self.label_N, self.label_space), "clouds": self.having_K}

    @property
    def rarest_N(self) -> Index:
        """int64 [N]: of the classes of each cloud the one that fewest clouds have; splits are stratified by it."""
        here_NK = self._here_NK.cpu()
        rank_NK = torch.where(here_NK, here_NK.sum(dim=0), self.examples + 1)
        found: Index = rank_NK.argmin(dim=1).numpy()
        return found

    def hold_out(self, share: float, seed: int) -> tuple[PointLabelledClouds, PointLabelledClouds]:
        """(training data, held-out data): `hold_out_index` of `rarest_N`."""
        rest, held = hold_out_index(self.rarest_N, share, seed)
        return self.select(rest), self.select(held)


class PointLabelsTask(CloudTask):
    """A class for every point. Batches are (points [B, P, 3], labels [B, P]), and rotations for evaluation."""

    summary_metrics = ("miou_so3", "point_accuracy", "invariance_error")

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        points = self.options.points
        self.measured_by = (
            MeanIoU(points),
            TurnedIoU(points),
            PointAccuracy(points),
            PixelLoss(points),
            InvarianceError(),
        )
        if run.method.rehearsal > 0 and run.method.head == "frame":
            raise ConfigError(
                "method.rehearsal with a frame takes the class memory before the projection, which this task does "
                "not keep: set method.rehearsal = 0, or method.head = 'cosine'"
            )

    @property
    def members_per_example(self) -> int:
        """Points of a cloud that sums of features are made of."""
        return min(self.options.memory_points, self.options.points)

    def backbone(self) -> tuple[nn.Module, int]:
        """Features of every point."""
        return PointwiseNetwork(self.options), self.options.widths[-1]

    # ---- data ------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> PointLabelledClouds:
        """The clouds at `spec`; for prediction also without labels. Raises DataError."""
        found = readers.read(spec, purpose, self.options.points, self.run.evaluate.test_share)
        if found.part_NP is None and purpose != "input":
            raise DataError(
                f"{spec}: its points have no classes (an array `point_label` [N, P], or y_train [N, P])"
            )
        unknown = sorted(set(found.classes) - set(self.class_names)) if found.part_NP is not None else []
        if unknown:
            raise DataError(
                f"{spec}: classes {', '.join(map(repr, unknown[:10]))} are not in the run, which has "
                f"{', '.join(self.class_names[:10])} (task.classes)"
            )
        label_NP = torch.full(found.point_NP3.shape[:2], UNLABELLED)
        if found.part_NP is not None:
            place = torch.tensor([*(self.class_names.index(name) for name in found.classes), UNLABELLED])
            label_NP = place[found.part_NP]  # the last one for -1
        plain = self.labelled(found.point_NP3, label_NP, found.names, found.notes)
        clouds = self._clouds(plain)
        return PointLabelledClouds(**vars(clouds), memory_points=self.members_per_example)

    def _parts_of(self, data: TaskData, split: SplitSection) -> list[Index]:
        assert isinstance(data, PointLabelledClouds)
        return split_index(data.rarest_N, split)

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training clouds at `spec`, or one part of them with the split's tilt. Raises DataError."""
        data = self.read(spec, "train")
        if part is None:
            return data
        used = split_with(part, split)
        return self._tilted(data.select(self._parts_of(data, used)[part.index]), part, used)

    def make_split(self, spec: str, split: SplitSection) -> str:
        """See Task."""
        return split_digest(self._parts_of(self.read(spec, "train"), split))

    # ---- training and read-out ---------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `guide.method` over the labelled points."""
        point_BP3, label_BP = batch[:2]
        keep_BP = label_BP != UNLABELLED
        found = as_classifier(model)
        feat_BPD = found.features(point_BP3)
        if not keep_BP.any():
            return feat_BPD.sum() * 0.0, {}
        views = views_of(guide, lambda model: model.features(point_BP3)[keep_BP])
        return objective(feat_BPD[keep_BP], label_BP[keep_BP], found.head, guide, None, views)

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [X, D], labels [X]) of the points that sums of features are made of."""
        return self.aligned(model, batch)

    def aligned(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `embed`: the memory is in the frame's space."""
        label_BM = batch[1][:, : self.members_per_example]
        feat_BMD = as_classifier(model).features(batch[0])[:, : self.members_per_example]
        keep_BM = label_BM != UNLABELLED
        return unit(feat_BMD[keep_BM]), label_BM[keep_BM]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K, P], -inf beyond the current classes."""
        found = as_classifier(model)
        return self._read_out(found, found.features(inputs), guide)

    def _read_out(self, found: ClassifierModel, feat_BPD: Tensor, guide: Guide) -> Tensor:
        score_XK = readout_logits(feat_BPD.flatten(0, 1), found.head, guide, self._classes_in(guide))
        return score_XK.reshape(*feat_BPD.shape[:2], -1).transpose(1, 2)

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """(scores [B, K, P], labels [B, P], `VOID` where a point is not judged)."""
        label_BP = batch[1]
        return self.scores(model, batch[0], guide).float(), label_BP.masked_fill(label_BP == UNLABELLED, VOID)

    def _judged(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(points, labels [B, P] as in `outputs`, rotations)."""
        point_BP3, label_BP, again_B33 = batch
        return point_BP3, label_BP.masked_fill(label_BP == UNLABELLED, VOID), again_B33

    # ---- for people ------------------------------------------------------------------------------------------

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """For each cloud its most frequent classes with their shares of the points, and the mean confidence."""
        return most_frequent(output, self.class_names)
