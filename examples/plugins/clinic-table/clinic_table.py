"""A task for tables of clinics (CSV, one row per patient): predicts one of several outcomes from numbers."""

import csv
from pathlib import Path

import torch
from torch import nn

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.classifier import ClassifierOptions, ClassifierTask
from fednc.common.tasks.metrics import AUROC, BalancedAccuracy, CrossEntropy
from fednc.common.tasks.tensor_data import LabelledTensors


class ClinicOptions(ClassifierOptions):
    features: dict[str, tuple[float, float]]  # column: (mean, standard deviation)
    outcome: str = "outcome"  # column; not needed in data for prediction


class ClinicTable(ClassifierTask):
    name, version, Options = "clinic-table", 1, ClinicOptions
    options: ClinicOptions
    metrics = (AUROC, BalancedAccuracy, CrossEntropy)

    def backbone(self) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Linear(len(self.options.features), 32), nn.ReLU()), 32

    def read(self, spec: str, purpose: Purpose) -> LabelledTensors:
        columns, outcome = self.options.features, self.options.outcome
        part = "train" if purpose == "train" else "test"  # if the table has a column `split`
        try:
            with Path(spec.removeprefix("csv:")).open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row.get("split", part) == part]
            inputs = [[(float(row[name]) - mean) / std for name, (mean, std) in columns.items()] for row in rows]
            known = purpose != "input" or all(outcome in row for row in rows)
            labels = [row[outcome] for row in rows] if known else None
        except (OSError, KeyError, ValueError) as e:
            raise DataError(f"{spec}: cannot be read as a clinic's table ({type(e).__name__}: {e})") from e
        return self.labelled(torch.tensor(inputs).reshape(-1, len(columns)), labels)
