"""Steps at the server: what they act on, what they remember, and that none of it leaves the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from torch import nn

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import RunConfig
from fednc.common.config.tables import TrainSection
from fednc.common.errors import DivergedError, RunFailedError
from fednc.common.methods import registry
from fednc.common.methods.api import Method, NoOptions, ServerRound
from fednc.common.tasks import discovery
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.wire import records
from fednc.common.wire.messages import TRAIN
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.method_steps import MethodSteps
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from support.contract_run import CLIENTS, assert_same_bits, config, run_on_local

STEPS = [name for name in registry.SHIPPED if registry.is_step(name)]
REMEMBERING = [{"name": name} for name in (*STEPS, "feddyn")] + [
    {"name": "fednc", "server_step": "fedadam"},
    {"name": "scaffold", "server_step": "fedavgm"},
]


class Killed(BaseException):
    """The server's process is gone."""


def goes_on(run: RunConfig, folder: Path) -> RunResult:
    """The run, killed in the middle of round 3 and begun again from its checkpoint; the clients stay."""
    asked: list[str] = []

    def dies_once(message: Message, context: Context) -> Message:
        meta = message.metadata
        if (meta.message_type, meta.group_id) == (TRAIN, "3") and len(asked) < 2:
            asked.append(str(context.node_config["name"]))
            if len(asked) == 2:
                raise Killed
        return fednc_app(message, context)

    checkpoints = Checkpoints(folder, keep=2)
    with LocalGrid(run, CLIENTS, dies_once) as grid:
        around = Surroundings(name_of=grid.name_of, checkpoints=checkpoints)
        with pytest.raises(Killed):
            FederatedRun(run, EventLog()).execute(grid, around)
        again = FederatedRun(run, EventLog())
        kept = checkpoints.latest(run.digest, run.decisive())
        assert kept is not None
        assert kept.round == 2
        again.restore(kept)
        return again.execute(grid, around)


@pytest.mark.parametrize("method", REMEMBERING, ids=str)
def test_a_run_that_is_killed_and_begun_again_gives_the_same_bits(method: dict[str, Any], tmp_path: Path) -> None:
    run = config(method=method, rounds={"total": 4})
    undisturbed = run_on_local(run, fednc_app, tmp_path)
    resumed = goes_on(run, tmp_path)
    assert_same_bits(resumed, undisturbed)
    assert resumed.state.kept.keys() == undisturbed.state.kept.keys() != set()
    assert all(torch.equal(value, resumed.state.kept[key]) for key, value in undisturbed.state.kept.items())


def test_the_same_holds_for_a_method_whose_clients_remember(tmp_path: Path) -> None:
    run = config(method={"name": "fednc", "own_control": 1.0}, rounds={"total": 4})
    assert_same_bits(goes_on(run, tmp_path), run_on_local(run, fednc_app, tmp_path))


@pytest.mark.parametrize("method", REMEMBERING, ids=str)
def test_the_state_of_a_step_is_never_sent(method: dict[str, Any], tmp_path: Path) -> None:
    """Looked for by value and by name, in all that clients are sent and in what they answer."""
    seen: set[bytes] = set()
    names: set[str] = set()

    def look(message: Message, context: Context) -> Message:
        reply = fednc_app(message, context)
        for content in (message.content, reply.content):
            seen.update(bytes(array.data) for array in records.arrays_of(content))
            names.update(key for record in content.array_records.values() for key in record)
        return reply

    result = run_on_local(config(method=method), look, tmp_path)
    kept = result.state.kept
    assert kept
    assert not any(key in names for key in kept)
    plain = {"name": method["name"]} if "server_step" in method else {"name": "fedavg"}
    before = set(names)
    names.clear()
    run_on_local(config(method=plain), look, tmp_path)
    assert names == before, "the same tensors travel as without the step"
    bodies = {value.numpy().tobytes() for value in kept.values() if value.numel() > 16 and value.abs().max() > 0}
    assert bodies
    assert not any(body in data for body in bodies for data in seen)


@pytest.mark.parametrize("name", [*STEPS, "feddyn", "fednova"])
def test_running_statistics_are_averaged_and_parameters_are_stepped(name: str, tmp_path: Path) -> None:
    plain, stepped = (
        run_on_local(
            config(method={"name": each}, task={"norm": "batch"}, rounds={"total": 1}), fednc_app, tmp_path
        ).state.model
        for each in ("fedavg", name)
    )
    buffers = {key for key in plain if "running" in key or "num_batches" in key}
    assert len(buffers) >= 3
    params = {key: plain[key] for key in plain.keys() - buffers}
    if name == "fednova" or name != "feddyn":
        assert all(torch.equal(plain[key], stepped[key]) for key in buffers)
    assert {stepped[key].dtype for key in buffers} == {plain[key].dtype for key in buffers}
    moved = [key for key, value in params.items() if not torch.equal(value, stepped[key])]
    assert moved if name != "fedavgm" else True, "the first step of momentum is that of fedavg"


def test_tensors_that_a_task_aggregates_in_another_way_are_not_stepped() -> None:
    task = discovery.get(config(method={"name": "fedadam"}))
    model = task.build_model()
    every = task.stepped_keys(model)
    for key, kind in zip(sorted(every), [kind for kind in Aggregation if kind != Aggregation.MEAN], strict=False):
        task.aggregation = lambda name, key=key, kind=kind: kind if name == key else Aggregation.MEAN
        assert task.stepped_keys(model) == every - {key}


@pytest.mark.parametrize("robust", ["clip", "trim"])
def test_a_step_is_given_the_robust_mean(robust: str, tmp_path: Path) -> None:
    rounds = {"total": 2, "robust": robust}
    wanted = run_on_local(config(method={"name": "fedavg"}, rounds=rounds), fednc_app, tmp_path)
    method = {"name": "fedavgm", "server_momentum": 0}
    found = run_on_local(config(method=method, rounds=rounds), fednc_app, tmp_path)
    for key, value in wanted.state.model.items():
        torch.testing.assert_close(found.state.model[key], value, atol=1e-5, rtol=1e-5)


def steps_of(model: nn.Module, **method: Any) -> MethodSteps:
    run = config(method=method)
    return MethodSteps(run.method.parts, discovery.get(run).stepped_keys(model))


def reached(steps: MethodSteps, mean: dict[str, torch.Tensor], **other: Any) -> ServerRound:
    before = {key: torch.zeros_like(value) for key, value in mean.items()}
    values = {"beside": {}, "news": {}, "state": steps.kept(before), "share": 1.0, "examples": (8, 24)}
    return ServerRound(before=before, mean=mean, train=TrainSection(batch=8), **{**values, **other})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.coarse = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.outer = self.inner


def test_a_parameter_with_two_names_is_stepped_alike_under_both_and_only_float32_is() -> None:
    model = Tied()
    steps = steps_of(model, name="fedadam")
    assert steps.stepped == {key for key in model.state_dict() if key.rpartition(".")[2] in ("weight", "bias")}
    mean = {key: torch.full_like(model.state_dict()[key], 0.5) for key in sorted(steps.stepped)}
    after = steps.step(reached(steps, mean))
    assert torch.equal(after.mean["inner.weight"], after.mean["outer.weight"])
    assert not torch.equal(after.mean["inner.weight"], mean["inner.weight"])


def test_a_step_that_leaves_no_finite_values_ends_the_round() -> None:
    steps = steps_of(nn.Linear(2, 2), name="fedavgm", server_lr=1e38)
    mean = {key: torch.full_like(value, 100.0) for key, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(DivergedError, match="step of fedavgm"):
        steps.step(reached(steps, mean))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"mean": {}}, "`mean`"),
        ({"mean": {"weight": torch.zeros(2, 2, dtype=torch.float64), "bias": torch.zeros(2)}}, r"\['weight'\]"),
        ({"state": {"more": torch.zeros(1)}}, "`state`"),
        ({"beside": {"more": torch.zeros(1)}}, "`beside`"),
    ],
    ids=["names", "types", "state", "beside"],
)
def test_a_step_that_returns_other_tensors_is_an_error(result: dict[str, Any], words: str) -> None:
    class Broken(Method):
        """A method of somebody who has not read the page."""

        name = "broken"

        def step(self, reached: ServerRound) -> ServerRound:
            return replace(reached, **result)

    steps = MethodSteps((Broken(NoOptions()),), frozenset(("weight", "bias")))
    mean = {key: torch.ones_like(value) for key, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(RunFailedError, match=words):
        steps.step(reached(steps, mean))


def test_nothing_is_changed_in_place() -> None:
    """A round that does not count leaves the state as it was, which shares its tensors with the next one."""
    for name in [*STEPS, "feddyn", "fednova"]:
        steps = steps_of(nn.Linear(2, 2), name=name)
        mean = {key: torch.randn_like(value) for key, value in nn.Linear(2, 2).state_dict().items()}
        given = reached(steps, mean)
        copies = [
            {k: v.clone() for k, v in tensors.items()} for tensors in (given.before, given.mean, given.state)
        ]
        first, second = steps.step(given), steps.step(given)
        for tensors, copy in zip((given.before, given.mean, given.state), copies, strict=True):
            assert all(torch.equal(tensors[key], copy[key]) for key in copy)
        assert all(torch.equal(first.mean[key], second.mean[key]) for key in mean)


def test_the_order_in_which_clients_are_listed_does_not_change_a_step() -> None:
    steps = steps_of(nn.Linear(2, 2), name="fednova")
    mean = {key: torch.randn_like(value) for key, value in nn.Linear(2, 2).state_dict().items()}
    one, other = (steps.step(reached(steps, mean, examples=order)) for order in ((8, 24, 99), (99, 8, 24)))
    assert all(torch.equal(one.mean[key], other.mean[key]) for key in mean)


def test_a_stage_that_trains_fewer_tensors_keeps_the_state_of_these() -> None:
    prepared = FederatedRun(config(method={"name": "scaffold", "server_step": "fedadam"}), EventLog())
    state = prepared.state
    (key, *_) = sorted(state.methods.stepped)
    state.narrow([key])
    assert state.kept.keys() == {f"fedadam/first/{key}", f"fedadam/second/{key}"}
    assert state.extra.keys() == {f"control/{key}"}
