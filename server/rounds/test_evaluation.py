"""The global model on the server's own test data: metrics of the task and the geometry of its features.

Called by the strategy in its own thread. Knows no grid.

Legend: N examples, D feature width, K label space.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.heads import CosineHead, LinearHead
from fednc.common.learning.neural_collapse import alignment, collapse
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, TaskData, add_stats
from fednc.common.tasks.classifier import ClassifierTask, classifier
from fednc.common.tasks.metrics import Stats


class CentralEvaluation:
    """Evaluates global states; holds the model and the test data for the run, on `device`."""

    def __init__(self, task: Task, model: nn.Module, data: TaskData, batch: int, device: torch.device) -> None:
        self._task, self._model, self._data = task, copy.deepcopy(model).to(device), data.to(device)
        self._batch, self._device = batch, device

    def __call__(self, state: Mapping[str, Tensor], guide: Guide) -> dict[str, float]:
        """Metrics of the task over the classes that exist, and nc1 ... nc4 where there are classes."""
        if not isinstance(self._task, ClassifierTask):
            return self.metrics(state, guide)
        self._load(state)
        guide = guide.to(self._device)
        stats: Stats = {}
        feats, labels = [], []
        with torch.no_grad():
            for batch in self._known(guide).eval_batches(self._batch):
                add_stats(stats, self._task.statistics(self._model, batch, guide))
                feat_BD, label_B = self._task.aligned(self._model, batch)
                feats.append(feat_BD)
                labels.append(label_B)
        classes = len(self._task.class_names) if guide.classes is None else guide.classes
        geometry = collapse(torch.cat(feats), torch.cat(labels), self._vertices(guide), classes)
        return {**self._task.measure(stats), **geometry}

    def metrics(self, state: Mapping[str, Tensor], guide: Guide) -> dict[str, float]:
        """Metrics of the task alone: what `__call__` says of them, without the geometry."""
        self._load(state)
        guide = guide.to(self._device)
        stats: Stats = {}
        with torch.no_grad():
            for batch in self._known(guide).eval_batches(self._batch):
                add_stats(stats, self._task.statistics(self._model, batch, guide))
        return self._task.measure(stats)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self._model.load_state_dict(state, strict=False)
        self._model.eval()

    def _known(self, guide: Guide) -> TaskData:
        """The examples of the classes that exist."""
        return self._data if guide.classes is None else self._data.of_classes(0, guide.classes)

    def _vertices(self, guide: Guide) -> Tensor:
        head = getattr(self._model, "head", None)
        return head.weight.detach() if isinstance(head, LinearHead | CosineHead) else guide.etf_KD

    def alignment(self, state: Mapping[str, Tensor], guide: Guide) -> Tensor:
        """float64 [K, K]: cosines of the centred class means on the test data with the class vectors."""
        return alignment(self.class_means(state), self._vertices(guide).cpu())

    def class_means(self, state: Mapping[str, Tensor]) -> Tensor:
        """[K, D] class means of unit features on the test data, on the CPU."""
        self._load(state)
        sums: ClassSums | None = None
        with torch.no_grad():
            for batch in self._data.eval_batches(self._batch):
                feat_BD, label_B = classifier(self._task).aligned(self._model, batch)
                sums = sums or ClassSums.zeros(self._task.label_space, feat_BD.shape[1], feat_BD.device)
                sums.add_batch(feat_BD, label_B)
        assert sums is not None
        return sums.mean_KD.cpu()
