"""The signal task: a classifier of windows of several channels, normalised by the whole federation's statistics.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: N windows, T samples of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Purpose, Suggestion, TaskData
from fednc.common.tasks.classifier import ClassifierTask
from fednc.common.tasks.metrics import Accuracy, BalancedAccuracy, CrossEntropy, Stats
from fednc.common.tasks.moments import Moments, Standardise
from fednc.common.tasks.tensor_data import LabelledTensors
from fednc.tasks.signal.dataset import SignalData
from fednc.tasks.signal.network import build_network
from fednc.tasks.signal.options import SignalOptions
from fednc.tasks.signal.sources import select
from fednc.tasks.signal.suggest import suggest


class SignalTask(ClassifierTask):
    """Classification of signals. Batches are (windows float32 [B, T, C], int64 labels [B])."""

    name = "signal"
    Options = SignalOptions
    options: SignalOptions
    metrics = (Accuracy, BalancedAccuracy, CrossEntropy)

    def backbone(self) -> tuple[nn.Module, int]:
        """The 1-D CNN, whose first layer standardises the channels."""
        return build_network(self.options)

    def aggregation(self, key: str) -> Aggregation:
        """Mean and deviation of the channels are fixed after the exchange before round 1."""
        return Aggregation.FIXED if key.startswith("backbone.0.") else super().aggregation(key)

    # ---- data ------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> SignalData:
        """The windows at `spec`; to predict on, also a file or folder without labels. Raises DataError."""
        found = select.read(spec, purpose, self.options, self.run.evaluate.test_share)
        return self.labelled(torch.from_numpy(found.window_NTC), found.label_N, found.names, found.notes)

    def labelled(
        self,
        inputs: Tensor,
        labels: Sequence[str] | Tensor | None,
        names: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> SignalData:
        """As for every classifier, with what varies training windows."""
        plain: LabelledTensors = super().labelled(inputs, labels, names, notes)
        channels = len(self.options.channels)
        values_MC = inputs.reshape(-1, channels)
        spread_C = values_MC.std(dim=0, correction=0) if len(values_MC) else torch.zeros(channels)
        return SignalData(
            tensors=plain.tensors,
            label_space=plain.label_space,
            names=plain.names,
            notes=plain.notes,
            options=self.options,
            deviation_C=spread_C,
        )

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Options that fit the recordings or windows at `spec`. Raises DataError."""
        return suggest(spec)

    def preprocessing(self) -> dict[str, Any]:
        """Raw window to model input: nothing is changed, since the model standardises the channels itself."""
        return {"window": self.options.window, "channels": list(self.options.channels), "axes": "T, C"}

    # ---- federated normalisation -----------------------------------------------------------------------------

    @property
    def _moments(self) -> Moments:
        return Moments(len(self.options.channels), per_example=self.options.window)

    def no_data_sums(self) -> Stats:
        """See Task."""
        return {**super().no_data_sums(), **self._moments.zeros()}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """Count, sum and sum of squares of each channel over all samples of all windows."""
        assert isinstance(data, SignalData)
        value_MC = data.tensors[0].reshape(-1, len(self.options.channels))
        return {**super().data_sums(data, least), **self._moments.sums(value_MC, least)}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """See Task."""
        super().check_data_sums(sums, announced)
        self._moments.check(sums, announced)

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """Write the mean and deviation of each channel over all clients into the first layer."""
        super().with_data_sums(model, sums)
        (layer,) = (module for module in model.modules() if isinstance(module, Standardise))
        layer.set(*self._moments.mean_and_deviation(sums))
