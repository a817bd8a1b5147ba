"""Methods with optimisers other than SGD, and with several batches to a step: right, or refused with a reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.config.tables import TrainSection
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.methods.api import Addition
from fednc.common.methods.fednova import effective_steps, optimiser_steps
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.prototype_tasks import LINE, LineTask, installed, write_line


class TwoOptimisers(LineTask):
    name = "two"

    def optimiser_parts(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {name: [param] for name, param in model.named_parameters()}


def model_after(method: str, folder: Path, **train: Any) -> dict[str, Tensor]:
    """The model after two rounds of one client."""
    values = {**LINE, "method": {"name": method}, "rounds": {"total": 2, "min_clients": 1}}
    run = parse_run({**values, "train": {"batch": 16, "lr": 0.02, **train}})
    data = write_line(folder / "one.npz", 1, rows=40)
    with LocalGrid(run, [ClientConfig(name="one", data=data, device="cpu", val_share=0)]) as grid:
        return FederatedRun(run, EventLog()).execute(grid).state.model


@pytest.mark.parametrize(
    "train",
    [
        {"epochs": 3, "accumulate": 2},  # 9 batches make 5 steps
        {"epochs": 2, "optimizer": "adamw"},
        {"epochs": 3, "optimizer": "adagrad", "accumulate": 4},
        {"epochs": 2, "optimizer_options": {"nesterov": True}},
    ],
)
def test_fednova_of_one_client_is_fedavg_as_both_sides_count_the_same_steps(
    train: dict[str, Any], tmp_path: Path
) -> None:
    with installed():
        plain, per_step = (model_after(name, tmp_path, **train) for name in ("fedavg", "fednova"))
    for key, value in plain.items():
        torch.testing.assert_close(per_step[key], value, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 4), st.integers(1, 9))
def test_steps_are_those_that_the_trainer_takes(examples: int, batch: int, epochs: int, accumulate: int) -> None:
    train = TrainSection(batch=batch, epochs=epochs, accumulate=accumulate)
    waiting = steps = 0
    for _ in range(epochs * len(range(0, examples, batch))):
        waiting += 1
        if waiting == accumulate:
            waiting, steps = 0, steps + 1
    assert optimiser_steps(examples, train) == steps + (waiting > 0)


def test_momentum_lengthens_the_steps_of_plain_sgd_only() -> None:
    assert effective_steps(2, TrainSection(momentum=0.9)) == pytest.approx(1 + 1.9)
    for other in ({"optimizer": "adam"}, {"optimizer_options": {"momentum": 0.1}}):
        assert effective_steps(7, TrainSection.model_validate({"momentum": 0.9, **other})) == 7


@pytest.mark.parametrize("method", [{"name": "scaffold"}, {"name": "fednova", "control_variates": True}])
def test_scaffold_is_refused_with_an_optimiser_that_scales_its_own_steps(method: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method 'scaffold' corrects the steps of sgd, and 'adamw'"):
        LineTask(parse_run({**LINE, "method": method, "train": {"optimizer": "adamw"}}))
    LineTask(parse_run({**LINE, "method": method, "train": {"momentum": 0.5}}))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"method": {"name": "scaffnew", "server_step": "fedavgm"}}, "method 'fedavgm'"),
        ({"method": {"name": "feddyn", "own_control": 0.5}}, "method 'feddyn'"),
        ({"rounds": {"robust": "trim"}}, "rounds.robust = 'trim'"),
    ],
)
def test_scaffnew_is_refused_where_the_next_model_is_not_the_plain_mean(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"method 'scaffnew' needs the plain mean.*{said}"):
        LineTask(parse_run({**LINE, "method": {"name": "scaffnew"}, **other}))
    LineTask(parse_run({**LINE, "method": {"name": "feddyn", "own_control": 0, "proximal": 0.1}}))


def test_methods_that_change_all_gradients_are_refused_for_a_task_with_several_optimisers() -> None:
    refused = set()
    for name in registry.SHIPPED:
        run = parse_run({**LINE, "task": {"name": "two"}, "method": {"name": name}})
        if run.method.needs_classes:
            continue
        if not registry.get(name).acts_on_gradients:
            TwoOptimisers(run)
            continue
        with pytest.raises(ConfigError, match="has several optimisers"):
            TwoOptimisers(run)
        refused.add(name)
    assert refused == {"scaffold", "fednova", "scaffnew"}


def test_every_shipped_method_that_acts_on_gradients_says_so() -> None:
    """By its file: an `Addition` with an `on_gradients`, and the attribute on the method."""
    for name in registry.SHIPPED:
        method = registry.get(name)
        found = vars(__import__(method.__module__, fromlist=["x"])).values()
        additions = [one for one in found if isinstance(one, type) and issubclass(one, Addition)]
        acts = any(one.on_gradients is not Addition.on_gradients for one in additions)
        assert method.acts_on_gradients == acts, name


def write_own_plane(path: Path, slope: float, width: float) -> str:
    """Points on a plane of this client's own, seen mostly along one direction."""
    draw = np.random.default_rng(1)
    x = (draw.normal(size=(64, 3)) * np.array([1.0, width, 1 / width])).astype(np.float32)
    np.savez(path, x=x, y=(x @ np.full(3, slope, np.float32) + slope).astype(np.float32))
    return f"npz:{path}"


def distance_to_optimum(method: dict[str, Any], optimizer: str, folder: Path) -> float:
    """From what two clients reach together to the least squares over the examples of both."""
    run = parse_run(
        {
            **LINE,
            "method": method,
            "train": {"batch": 64, "lr": 0.05, "epochs": 40, "momentum": 0, "optimizer": optimizer},
            "rounds": {"total": 30, "min_clients": 2},
        }
    )
    data = [write_own_plane(folder / f"{k}.npz", *own) for k, own in enumerate(((1.0, 2.0), (-1.0, 0.5)))]
    clients = [ClientConfig(name=f"c{k}", data=spec, device="cpu", val_share=0) for k, spec in enumerate(data)]
    with installed(), LocalGrid(run, clients) as grid:
        model = FederatedRun(run, EventLog()).execute(grid).state.model
    loaded = [LineTask(run).load_test(spec).tensors for spec in data]
    x, y = (torch.cat([tensors[i] for tensors in loaded]) for i in range(2))
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), y[:, None]).solution[:, 0]
    return math.dist(torch.cat([model["weight"][0], model["bias"]]).tolist(), best.tolist())


def test_scaffnew_comes_near_the_minimum_of_all_clients(tmp_path: Path) -> None:
    plain, corrected = (distance_to_optimum({"name": name}, "sgd", tmp_path) for name in ("fedavg", "scaffnew"))
    assert corrected < plain / 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_feddyn_comes_near_the_minimum_of_all_clients_with_any_optimiser(optimizer: str, tmp_path: Path) -> None:
    """Two clients whose own minima are far apart: fedavg of many local steps stops elsewhere."""
    plain = distance_to_optimum({"name": "fedavg"}, optimizer, tmp_path)
    bent = distance_to_optimum({"name": "feddyn", "dynamic": 1.0}, optimizer, tmp_path)
    assert bent < plain / 3
