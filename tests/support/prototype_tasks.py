"""Small tasks, as somebody else would write them: a classifier of table rows, regressions without classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from fednc.common import plugins
from fednc.common.learning.round_context import Guide
from fednc.common.plugins import TASKS, Plugin
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Purpose, Task, TaskData, TaskOptions
from fednc.common.tasks.classifier import ClassifierOptions, ClassifierTask
from fednc.common.tasks.metrics import AUROC, MAE, RMSE, Accuracy, BalancedAccuracy, Stats
from fednc.common.tasks.moments import Moments, Standardise
from fednc.common.tasks.tensor_data import LabelledTensors, TensorData
from fednc.common.tasks.tensor_task import TensorTask


# ---- clinic: begin
class ClinicOptions(ClassifierOptions):
    features: tuple[str, ...]
    label: str
    width: int = 16


class ClinicTask(ClassifierTask):
    """Rows of a CSV file, each with a class."""

    name = "clinic"
    Options = ClinicOptions
    options: ClinicOptions
    metrics = (AUROC, BalancedAccuracy, Accuracy)

    def backbone(self) -> tuple[nn.Module, int]:
        layers = nn.Linear(len(self.options.features), self.options.width), nn.ReLU()
        return nn.Sequential(*layers), self.options.width

    def read(self, spec: str, purpose: Purpose) -> LabelledTensors:
        table = np.genfromtxt(
            Path(spec.removeprefix("csv:")), delimiter=",", names=True, dtype=None, encoding="utf-8"
        )
        rows = np.stack([table[name] for name in self.options.features], axis=1).astype(np.float32)
        has_labels = self.options.label in (table.dtype.names or ())
        return self.labelled(torch.from_numpy(rows), table[self.options.label].tolist() if has_labels else None)


# ---- clinic: end


class LineOptions(TaskOptions):
    features: int = 3


class LineTask(TensorTask):
    """A number from several numbers: no classes, no frame, no class memory."""

    name = "line"
    Options = LineOptions
    options: LineOptions
    metrics = (RMSE("mm"), MAE("mm"))

    def build_model(self) -> nn.Module:
        return nn.Linear(self.options.features, 1)

    def read(self, spec: str, purpose: Purpose) -> TensorData:
        with np.load(spec.removeprefix("npz:")) as found:
            return TensorData(tensors=(torch.from_numpy(found["x"]), torch.from_numpy(found["y"])))

    def loss(self, model: nn.Module, batch: Any, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        return (model(batch[0]).squeeze(1) - batch[1]).square().mean(), {}

    def outputs(self, model: nn.Module, batch: Any, guide: Guide) -> tuple[Tensor, Tensor]:
        return model(batch[0]).squeeze(1), batch[1]

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> dict[str, bytes]:
        return {"../count.txt": str(data.examples).encode()}  # a name that would lead out of its folder


class LanesTask(LineTask):
    """Also has a weight on a circle, one that few clients train, a fixed one, and a bias kept on the client."""

    name = "lanes"

    def build_model(self) -> nn.Module:
        return Lanes()

    def aggregation(self, key: str) -> Aggregation:
        kinds = {"bias": "local", "turn": "circular", "lane": "owners", "offset": "fixed"}
        return Aggregation(kinds.get(key, "mean"))

    def owned(self, data: TaskData) -> dict[str, int]:
        return {"lane": data.examples // 2} if data.examples > 150 else {}

    def loss(self, model: nn.Module, batch: Any, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        return (model(batch[0]) - batch[1]).square().mean(), {}

    def outputs(self, model: nn.Module, batch: Any, guide: Guide) -> tuple[Tensor, Tensor]:
        return model(batch[0]), batch[1]


class Lanes(nn.Module):
    """w x + sin(turn) + lane + offset + bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.turn, self.lane = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("offset", torch.tensor([0.25]))

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF @ self.weight + self.turn.sin() + self.lane + self.offset + self.bias


class ScaledTask(LineTask):
    """Standardises its inputs with mean and deviation over all clients."""

    name = "scaled"

    @property
    def moments(self) -> Moments:
        return Moments(self.options.features)

    def build_model(self) -> nn.Module:
        return nn.Sequential(Standardise(self.options.features), super().build_model())

    def aggregation(self, key: str) -> Aggregation:
        return Aggregation.FIXED if key in ("0.mean", "0.deviation") else Aggregation.MEAN

    def no_data_sums(self) -> Stats:
        return self.moments.zeros()

    def data_sums(self, data: TaskData, least: int) -> Stats:
        assert isinstance(data, TensorData)
        return self.moments.sums(data.tensors[0], least)

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        self.moments.check(sums, announced)

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        assert isinstance(model, nn.Sequential)
        assert isinstance(model[0], Standardise)
        model[0].set(*self.moments.mean_and_deviation(sums))


PROTOTYPES: dict[str, type[Task]] = {
    "clinic": ClinicTask,
    "line": LineTask,
    "lanes": LanesTask,
    "scaled": ScaledTask,
}


@contextmanager
def installed(tasks: dict[str, type[Task]] = PROTOTYPES) -> Iterator[None]:
    """As if another distribution had brought these tasks, in this process."""
    real = plugins.installed

    def with_ours(group: str) -> tuple[Plugin, ...]:
        entries = {name: EntryPoint(name, f"prototype:{name}", TASKS) for name in tasks if group == TASKS}
        return (*real(group), *(Plugin(group, name, "prototypes", "1", entry) for name, entry in entries.items()))

    def load(plugin: Plugin) -> Any:
        return tasks[plugin.name] if plugin.distribution == "prototypes" else plugin.entry_point.load()

    with patch.object(plugins, "installed", with_ours), patch.object(Plugin, "load", load):
        yield


def write_clinic(path: Path, seed: int, rows: int = 120) -> str:
    """A CSV file of two overlapping clouds; its data spec."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 2, rows)
    x = draw.normal(size=(rows, 3)) + 1.2 * label[:, None]
    lines = [f"{a:.4f},{b:.4f},{c:.4f},{('healthy', 'ill')[k]}" for (a, b, c), k in zip(x, label, strict=True)]
    path.write_text("age,pulse,iron,state\n" + "\n".join(lines) + "\n")
    return f"csv:{path}"


def write_line(path: Path, seed: int, rows: int = 200) -> str:
    """Points near a plane; its data spec."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5], np.float32) + 3 + 0.1 * draw.normal(size=rows)).astype(np.float32)
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def write_scaled(path: Path, seed: int, rows: int = 200) -> str:
    """As `write_line`, with columns in units of their own and another mean in each file; its data spec."""
    write_line(path, seed, rows)
    with np.load(path) as found:
        x, y = found["x"], found["y"]
    x = (x * [1, 300, 0.01] + [50 + seed, -700, 3]).astype(np.float32)
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


CLINIC = {
    "seed": 1,
    "task": {
        "name": "clinic",
        "classes": ["healthy", "ill"],
        "features": ["age", "pulse", "iron"],
        "label": "state",
    },
    "frame": {"dim": 8},
    "train": {"batch": 16, "lr": 0.05},
    "rounds": {"total": 3, "min_clients": 2},
}
LINE = {
    "seed": 1,
    "task": {"name": "line"},
    "method": {"name": "fedavg"},
    "train": {"batch": 16, "lr": 0.02, "epochs": 4},
    "rounds": {"total": 3, "min_clients": 2},
}
LANES = {**LINE, "task": {"name": "lanes"}}
SCALED = {**LINE, "task": {"name": "scaled"}}
