"""The global model on the server's own test data: metrics of the task and the geometry of its features.

Called by the strategy in its own thread. Knows no grid.

Legend: N examples, D feature width, K label space.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.heads import CosineHead, LinearHead
from fednc.common.learning.neural_collapse import alignment, collapse
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, TaskData, add_stats
from fednc.common.tasks.classifier import ClassifierTask, classifier
from fednc.common.tasks.evaluation import evaluate, evaluation_batches
from fednc.common.tasks.metrics import CalibrationError, CrossEntropy, Stats, judged

SURE = 0.999


class CentralEvaluation:
    """Evaluates global states. Keeps the model and the test data on `device` for the whole run."""

    def __init__(self, task: Task, model: nn.Module, data: TaskData, batch: int, device: torch.device) -> None:
        self._task, self._model, self._data = task, copy.deepcopy(model).to(device), data.to(device)
        self._batch, self._device = batch, device

    def __call__(self, state: Mapping[str, Tensor], guide: Guide) -> dict[str, float]:
        """Metrics of the task over the classes so far, plus nc1 to nc4 if the task has classes."""
        if not isinstance(self._task, ClassifierTask):
            return self.metrics(state, guide)
        metrics, guide = self.metrics(state, guide), guide.to(self._device)
        feats, labels = zip(*self._features(self._known(guide)), strict=True)
        classes = len(self._task.class_names) if guide.classes is None else guide.classes
        geometry = collapse(torch.cat(feats), torch.cat(labels), self._vertices(guide), classes)
        return {**metrics, **geometry}

    def metrics(self, state: Mapping[str, Tensor], guide: Guide) -> dict[str, float]:
        """Only the task's metrics, without nc1 to nc4."""
        self._load(state)
        guide = guide.to(self._device)
        return self._task.measure(evaluate(self._task, self._model, self._known(guide), guide, self._batch))

    def confidence(self, state: Mapping[str, Tensor], guide: Guide) -> dict[str, Any]:
        """How far the confidences of a classifier can be trusted, for summary.json.

        `calibration_error` and `bins`: see `CalibrationError`; a bin is [examples, accuracy, mean confidence].
        `loss`: log-loss; None if a class has no score. `sure`: the share of examples above `SURE`. If labels are
        maps, an example is a pixel or a point.
        """
        self._load(state)
        guide, sums, sure = guide.to(self._device), Stats(), 0
        error, loss = CalibrationError(), CrossEntropy()
        for batch in evaluation_batches(self._model, self._known(guide), self._batch):
            score_BK, label_B = judged(*self._task.outputs(self._model, batch, guide))
            found = {**error.sums(score_BK, label_B), **loss.sums(score_BK, label_B)}
            add_stats(sums, {name: value.cpu() for name, value in found.items()})
            sure += int((score_BK.double().softmax(dim=1).max(dim=1).values > SURE).sum())
        count_N = sums["calibration_count_N"]
        examples = max(1, int(count_N.sum()))
        log_loss = loss.value(sums, examples)
        rows = zip(count_N, sums["calibration_correct_N"], sums["calibration_confidence_N"], strict=True)
        return {
            "examples": int(count_N.sum()),
            "calibration_error": error.value(sums, examples),
            "loss": log_loss if math.isfinite(log_loss) else None,
            "sure": sure / examples,
            "bins": [[int(n), float(hits / n), float(total / n)] for n, hits, total in rows if n],
        }

    def examples(self, state: Mapping[str, Tensor], guide: Guide) -> Mapping[str, bytes]:
        """Example files for people, by name; see Task.examples."""
        self._load(state)
        self._model.eval()
        guide = guide.to(self._device)
        with torch.no_grad():
            return self._task.examples(self._model, self._known(guide), guide)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._model.load_state_dict(state, strict=False)

    def _features(self, data: TaskData) -> Iterator[tuple[Tensor, Tensor]]:
        """(unit features [B, D], labels [B]) of each batch, in the frame's space."""
        for batch in evaluation_batches(self._model, data, self._batch):
            yield classifier(self._task).aligned(self._model, batch)

    def _known(self, guide: Guide) -> TaskData:
        """The examples of the classes so far."""
        return self._data if guide.classes is None else self._data.of_classes(0, guide.classes)

    def _vertices(self, guide: Guide) -> Tensor:
        head = getattr(self._model, "head", None)
        return head.weight.detach() if isinstance(head, LinearHead | CosineHead) else guide.etf_KD

    def alignment(self, state: Mapping[str, Tensor], guide: Guide) -> Tensor:
        """float64 [K, K]: cosines between the centred class means on the test data and the class vectors."""
        return alignment(self.class_means(state), self._vertices(guide).cpu())

    def class_means(self, state: Mapping[str, Tensor]) -> Tensor:
        """[K, D] class means of unit features on the test data, on the CPU."""
        self._load(state)
        sums: ClassSums | None = None
        for feat_BD, label_B in self._features(self._data):
            sums = sums or ClassSums.zeros(classifier(self._task).label_space, feat_BD.shape[1], feat_BD.device)
            sums.add_batch(feat_BD, label_B)
        assert sums is not None
        return sums.mean_KD.cpu()
