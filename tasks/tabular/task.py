"""The tasks for tables: a classifier and a regression, both called `tabular`; `task.kind` chooses.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: B batch, N rows, W inputs of the network, X columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Batch, Purpose, Suggestion, Task, TaskData
from fednc.common.tasks.classifier import ClassifierTask, as_classifier
from fednc.common.tasks.metrics import (
    AUROC,
    F1,
    MAE,
    R2,
    RMSE,
    Accuracy,
    BalancedAccuracy,
    CrossEntropy,
    Metric,
    Stats,
)
from fednc.common.tasks.request_forms import RequestForm, preprocessed
from fednc.common.tasks.tensor_data import LabelledTensors, TensorData
from fednc.common.tasks.tensor_task import TensorTask
from fednc.tasks.tabular.inputs import FIXED_KEYS, Bounded, TableInputs, TableSums
from fednc.tasks.tabular.options import TabularOptions
from fednc.tasks.tabular.reading import read_rows
from fednc.tasks.tabular.suggest import suggest

KINDS = ("csv", "parquet")


class TabularTask(ClassifierTask):
    """Tables with classes. Batches are (rows [B, X] float64, int64 labels [B])."""

    name = "tabular"
    sources: ClassVar[tuple[str, ...]] = KINDS
    Options = TabularOptions
    options: TabularOptions
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = (AUROC, Accuracy, BalancedAccuracy, F1, CrossEntropy)

    @classmethod
    def for_run(cls, run: RunConfig) -> Task:
        """This task, or the one for numbers if the run file says `kind = "regression"`."""
        wanted = (run.task.model_extra or {}).get("kind")
        return TabularRegression(run) if wanted == "regression" else cls(run)

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys that fit the table at `spec`. Raises DataError."""
        return suggest(spec, {})

    @classmethod
    def suggest_with(cls, spec: str, wishes: Mapping[str, Any]) -> Suggestion:
        """Keys that fit the table at `spec`, with target and kinds of columns as given. Raises DataError."""
        return suggest(spec, wishes)

    def backbone(self) -> tuple[nn.Module, int]:
        """The layers that `task.model` names, behind the inputs."""
        inputs = TableInputs(self.options)
        hidden, width = hidden_layers(inputs.width, self.options)
        return nn.Sequential(inputs, hidden), width

    def read(self, spec: str, purpose: Purpose) -> LabelledTensors:
        """The rows at `spec`. Raises DataError."""
        rows = read_rows(spec, purpose, self.options, self.run)
        label_N = rows.target_N.nan_to_num(-1).long()
        return LabelledTensors(
            tensors=(rows.input_NX, label_N),
            label_space=self.label_space,
            names=rows.names,
            notes=rows.notes,
            column_report=rows.columns,
            named_columns=self.options.schema_of_rows,
        )

    def aggregation(self, key: str) -> Aggregation:
        """See Task."""
        return Aggregation.FIXED if is_fixed(key) else super().aggregation(key)

    def no_data_sums(self) -> Stats:
        """See Task."""
        return {**super().no_data_sums(), **TableSums(self.options).zeros()}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """See Task."""
        assert isinstance(data, TensorData)
        return {**super().data_sums(data, least), **TableSums(self.options).sums(data.tensors[0], least)}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """See Task."""
        super().check_data_sums(sums, announced)
        TableSums(self.options).check(sums, announced)

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """See Task."""
        super().with_data_sums(model, sums)
        TableSums(self.options).put(inputs_in(as_classifier(model).backbone), sums)

    def preprocessing(self) -> dict[str, Any]:
        """See Task."""
        return described(self.options)

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Rows of codes, as `preprocessing` describes them."""
        return (preprocessed((len(self.options.inputs),), "FP64"),)


class RegressionModel(nn.Module):
    """Rows to one number each, in the units of the target, whose mean and deviation are those of all sites."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, inputs: TableInputs, hidden: nn.Module, width: int, mean: float, deviation: float) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.output = nn.Linear(width, 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float64))

    def standardised(self, row_BX: Tensor) -> Tensor:
        """[B]: the prediction in deviations from the mean."""
        found: Tensor = self.output(self.hidden(self.inputs(row_BX)))[:, 0]
        return found

    def forward(self, row_BX: Tensor) -> Tensor:
        """float64 [B]: the prediction in the target's units."""
        return self.standardised(row_BX).double() * self.deviation + self.mean


class TabularRegression(TensorTask):
    """Tables with a number to predict. Batches are (rows [B, X] float64, targets [B] float64, NaN if unknown)."""

    name = TabularTask.name
    Options = TabularOptions
    options: TabularOptions
    metrics: ClassVar[tuple[Metric | type[Metric], ...]] = (RMSE, MAE, R2)

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        # Terms are rounded so that sums do not depend on their order; the steps must fit the target's size.
        low, high = self.options.bounds.get(self.options.target, (-0.5, 0.5))
        step = 2.0 ** (math.floor(math.log2(high - low)) - 30)
        square = step * 2.0 ** math.floor(math.log2(high - low))
        self.measured_by = (RMSE("", square), MAE("", step), R2(min(step, square), (low + high) / 2))

    def build_model(self) -> RegressionModel:
        """See Task."""
        inputs = TableInputs(self.options)
        hidden, width = hidden_layers(inputs.width, self.options)
        low, high = self.options.bounds.get(self.options.target, (-math.sqrt(3), math.sqrt(3)))
        return RegressionModel(inputs, hidden, width, (low + high) / 2, (high - low) / math.sqrt(12))

    def read(self, spec: str, purpose: Purpose) -> TensorData:
        """The rows at `spec`. Raises DataError."""
        rows = read_rows(spec, purpose, self.options, self.run)
        return TensorData(
            tensors=(rows.input_NX, rows.target_N),
            names=rows.names,
            notes=rows.notes,
            column_report=rows.columns,
            named_columns=self.options.schema_of_rows,
        )

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error, of standardised targets."""
        del guide
        row_BX, target_B = batch
        found = as_regression(model)
        wanted_B = ((target_B - found.mean) / found.deviation).float()
        return (found.standardised(row_BX).float() - wanted_B).square().mean(), {}

    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """See Task: predictions and targets in the target's units."""
        del guide
        known_B = ~batch[1].isnan()
        return model(batch[0])[known_B], batch[1][known_B]

    def aggregation(self, key: str) -> Aggregation:
        """See Task."""
        return Aggregation.FIXED if is_fixed(key) else super().aggregation(key)

    @property
    def _target(self) -> Bounded:
        return Bounded.of(self.options, (self.options.target,), "target")

    def no_data_sums(self) -> Stats:
        """See Task."""
        return {**self._target.zeros(), **TableSums(self.options).zeros()}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """See Task."""
        assert isinstance(data, TensorData)
        row_NX, target_N = data.tensors
        return {**self._target.sums(target_N[:, None], least), **TableSums(self.options).sums(row_NX, least)}

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """See Task."""
        self._target.check(sums, announced)
        TableSums(self.options).check(sums, announced)

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """See Task."""
        found = as_regression(model)
        mean_1, deviation_1, known_1 = self._target.mean_and_deviation(sums)
        if known_1[0]:
            found.mean.copy_(mean_1[0])
            found.deviation.copy_(deviation_1[0])
        TableSums(self.options).put(found.inputs, sums)

    def preprocessing(self) -> dict[str, Any]:
        """See Task."""
        return described(self.options)

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Rows of codes, as `preprocessing` describes them."""
        return (preprocessed((len(self.options.inputs),), "FP64"),)


def hidden_layers(width: int, options: TabularOptions) -> tuple[nn.Module, int]:
    """(hidden layers, width of their output). Without normalisation layers, which unlike sites would disturb."""
    if options.model == "linear":
        return nn.Identity(), width
    layers: list[nn.Module] = []
    for wider in options.hidden:
        layers += [nn.Linear(width, wider), nn.ReLU(), *([nn.Dropout(options.dropout)] if options.dropout else [])]
        width = wider
    return nn.Sequential(*layers), width


def is_fixed(key: str) -> bool:
    """Whether a key of the state is made from the sums of the data."""
    return key.rpartition(".")[2] in FIXED_KEYS


def inputs_in(backbone: nn.Module) -> TableInputs:
    """The first layer of a classifier's backbone."""
    (found,) = [module for module in backbone.modules() if isinstance(module, TableInputs)]
    return found


def as_regression(model: nn.Module) -> RegressionModel:
    """`model`, which must come from `TabularRegression.build_model`."""
    assert isinstance(model, RegressionModel)
    return model


def described(options: TabularOptions) -> dict[str, Any]:
    """The inputs of an exported model: a float64 row with these columns in this order."""
    listed = {name: list(values) for name, values in options.categorical.items()}
    return {
        "columns": list(options.inputs),
        "categorical": listed,
        "missing": "NaN",
        "codes": "numbers as they are; booleans 0 and 1; a listed category its place from 0, another -2; an "
        "unlisted one its hash bucket",
    }
