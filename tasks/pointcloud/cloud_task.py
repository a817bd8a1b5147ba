"""A classifier whose inputs are clouds of points, the same however they are turned.

`task.py` registers it; `point_labels.py` derives from it. Must not know servers, clients or the link.

Legend: B batch, N clouds, P points, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fednc.common.config.tables import SplitSection
from fednc.common.errors import DataError
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide
from fednc.common.seeds import generator as seeded
from fednc.common.tasks.api import Batch, Part, Purpose, Suggestion, TaskData, split_with
from fednc.common.tasks.classifier import ClassifierModel, ClassifierTask, as_classifier
from fednc.common.tasks.graph_input import GraphInput, preprocessed_input
from fednc.common.tasks.metrics import EXAMPLES, Accuracy, CrossEntropy, Metric, Stats
from fednc.common.tasks.tensor_data import UNLABELLED, LabelledTensors
from fednc.tasks.pointcloud import readers, rotations
from fednc.tasks.pointcloud.alignment import closest_rotation
from fednc.tasks.pointcloud.dataset import CloudData
from fednc.tasks.pointcloud.metrics import InvarianceError, OfTurned, TurnedAccuracy
from fednc.tasks.pointcloud.network import PointNetwork, aligned_layers
from fednc.tasks.pointcloud.options import CloudSplit, PointCloudOptions

SUGGESTED_POINTS = 512


class CloudTask(ClassifierTask):
    """Classification of clouds. Batches are (points [B, P, 3], labels [B]).

    A third tensor of rotations [B, 3, 3] is in batches for evaluation: each cloud is evaluated twice.
    """

    name = "pointcloud"
    Options = PointCloudOptions
    Split = CloudSplit
    sources = ("shapes", "parts")  # .npz files and folders are usually images: `--task pointcloud`
    summary_metrics: ClassVar[tuple[str, ...]] = ("accuracy_so3", "invariance_error")
    options: PointCloudOptions
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = (
        Accuracy,
        TurnedAccuracy,
        CrossEntropy,
        InvarianceError,
    )

    def backbone(self) -> tuple[nn.Module, int]:
        """Three levels of neighbourhoods."""
        return PointNetwork(self.options), self.options.widths[-1]

    # ---- data ------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> CloudData:
        """The clouds at `spec`; for prediction also a file or a folder. Raises DataError."""
        found = readers.read(spec, purpose, self.options.points, self.run.evaluate.test_share)
        if found.part_NP is not None and found.labels is None:
            raise DataError(f"{spec}: each point has a class, not each cloud: set task.labels to 'points'")
        plain = self.labelled(found.point_NP3, found.labels, found.names, found.notes)
        return self._clouds(plain)

    def _clouds(self, plain: LabelledTensors) -> CloudData:
        """Examples (points, labels) with the two rotations of each cloud."""
        count = plain.examples
        first_N33 = rotations.draw(self.options.test_rotation, count, seeded(self.run.seed, "test-rotation"))
        again_N33 = rotations.draw("so3", count, seeded(self.run.seed, "any-rotation"))
        return CloudData(
            tensors=(plain.tensors[0], first_N33, again_N33, plain.label_N),
            label_space=self.label_space,
            names=plain.names,
            notes=plain.notes,
            rotation=self.options.train_rotation,
            jitter=self.options.jitter,
        )

    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training clouds at `spec`, or one part of them with the split's tilt. Raises DataError."""
        data = super().load_train(spec, part, split)
        if part is None:
            return data
        assert isinstance(data, CloudData)
        return self._tilted(data, part, split_with(part, split))

    def _tilted(self, data: CloudData, part: Part, used: SplitSection) -> CloudData:
        tilt_deg = used.tilt_deg if isinstance(used, CloudSplit) else 0.0
        return replace(data, tilt_33=rotations.tilt_of(part.index, tilt_deg, used.seed))

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """The classes of the clouds at `spec`. Raises DataError."""
        found = readers.read(spec, "train", SUGGESTED_POINTS)
        classes = found.classes or tuple(sorted(set(found.labels or ())))
        labels = {"labels": "points"} if found.part_NP is not None else {}
        return Suggestion({"classes": list(classes), **labels, "points": SUGGESTED_POINTS}, found.notes)

    def packed_spec(self, path: Any) -> str:
        """The reader of .npz files reads it."""
        return f"npz:{path}"

    def preprocessing(self) -> dict[str, Any]:
        """A cloud to model input."""
        return {
            "points": self.options.points,
            "centre": "mean of the points",
            "scale": "largest distance from the centre is 1",
            "axes": "x y z, last",
        }

    def graph_input(self) -> GraphInput:
        """A cloud. ONNX has no eigenvectors, which the principal axes need, nor distances in float64."""
        why = "ONNX has no operation for eigenvectors and pairwise distances, which its network computes"
        return replace(preprocessed_input((self.options.points, 3)), no_onnx=why)

    # ---- what is averaged --------------------------------------------------------------------------------------

    def before_upload(self, model: nn.Module, global_state: Mapping[str, Tensor]) -> None:
        """Turn the weights of each aligned layer as close to the global ones as a rotation can.

        The model stays the same function: W and WQ are the same layer. Without this, clients that have learnt the
        same, but in another position, would average to something else.
        """
        with torch.no_grad():
            for name, layer in aligned_layers(model).items():
                turn_33 = closest_rotation(layer.weight, global_state[f"{name}.weight"].to(layer.weight.device))
                layer.weight.copy_((layer.weight.double() @ turn_33).to(layer.weight.dtype))

    # ---- evaluation --------------------------------------------------------------------------------------------

    def statistics(self, model: nn.Module, batch: Batch, guide: Guide) -> Stats:
        """The sums of all metrics; those of turned clouds need a second pass, so they are made here."""
        point_BP3, target, again_B33 = self._judged(batch)
        found = as_classifier(model)
        feat, turned = found.features(point_BP3), found.features(rotations.turned(point_BP3, again_B33))
        score, turned_score = (self._read_out(found, each, guide).float() for each in (feat, turned))
        sums: Stats = {EXAMPLES: torch.tensor(len(target))}
        for metric in self.measured_by:
            of_turned = metric.of_turned(turned_score, target) if isinstance(metric, OfTurned) else {}
            sums |= metric.sums(score, target) | of_turned
        sums |= InvarianceError.sums_of(feat, turned)
        return {name: value.cpu() for name, value in sums.items()}

    def _judged(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(points, targets of the metrics, rotations) of what has a class."""
        known_B = batch[1] != UNLABELLED
        point_BP3, label_B, again_B33 = (each[known_B] for each in batch)
        return point_BP3, label_B, again_B33

    def _read_out(self, found: ClassifierModel, feat_BD: Tensor, guide: Guide) -> Tensor:
        """Scores [B, K] of features."""
        return readout_logits(feat_BD, found.head, guide, self._classes_in(guide))
