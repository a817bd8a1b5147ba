"""The signal task: its contract, normalisation by all clients, varied training windows, and a real run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fednc.bench.local_grid import LocalGrid
from fednc.cli.main import app as command
from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.tasks import discovery
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from fednc.tasks.signal.dataset import SignalData, moved
from fednc.testing import TaskContract
from support.contract_run import assert_same_bits
from support.runs_on_grids import in_one_process, over_the_link
from support.signal_files import CHANNELS, RUN, TASK, WINDOW, windows, write_csv, write_folder, write_npz

PEOPLE = {"anna": 30, "bert": 20, "carl": 11}


class TestSignal(TaskContract):
    task = "signal"
    options: ClassVar = {
        **{key: value for key, value in TASK.items() if key != "name"},
        "jitter": 0.1,
        "shift": 0.1,
    }
    tables: ClassVar = {"frame": {"dim": 8}, "train": {"batch": 16}}

    @pytest.fixture(autouse=True, scope="class")
    def _write(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).data = write_npz(tmp_path_factory.mktemp("signal") / "x.npz", 0, 30)


@pytest.fixture
def clients(tmp_path: Path) -> list[ClientConfig]:
    return [
        ClientConfig(
            name=name, data=write_npz(tmp_path / f"{name}.npz", person, each), device="cpu", val_share=0.0
        )
        for person, (name, each) in enumerate(PEOPLE.items())
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    x, y = windows(1, 12)
    test = write_npz(tmp_path / "test.npz", 1, 2, x_test=x, y_test=y)
    return parse_run({**RUN, "evaluate": {"test": test}})


def executed(run: RunConfig, clients: list[ClientConfig]) -> RunResult:
    with LocalGrid(run, clients) as grid:
        return FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of))


def test_channels_are_normalised_as_if_all_signals_were_at_one_place(
    run: RunConfig, clients: list[ClientConfig]
) -> None:
    result = executed(run, clients)
    pooled_MC = np.concatenate([windows(i, each)[0] for i, each in enumerate(PEOPLE.values())]).reshape(-1, 2)
    mean_C, deviation_C = (result.state.model[f"backbone.0.{key}"].numpy() for key in ("mean", "deviation"))
    assert np.allclose(mean_C, pooled_MC.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=0)
    assert np.allclose(deviation_C, pooled_MC.std(axis=0, dtype=np.float64), rtol=1e-6, atol=0)


def test_the_order_of_the_clients_changes_no_bit(run: RunConfig, clients: list[ClientConfig]) -> None:
    one, other = (executed(run, members).state.model for members in (clients, clients[::-1]))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_over_the_link_a_run_learns_with_the_same_bits_and_the_exported_model_predicts(
    run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    result = over_the_link(run, clients, flower_app.app, tmp_path, agreed=True)
    assert_same_bits(in_one_process(run, clients, flower_app.app), result)
    accuracy = result.history.rounds[-1].test["accuracy"]
    assert accuracy > 0.9
    folder = tmp_path / "run"
    folder.mkdir()
    write_files(folder, result, summary_of("run", result))
    said = CliRunner().invoke(command, ["predict", str(folder), run.evaluate.test, "--json", "-"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["metrics"]["accuracy"] == accuracy
    unlabelled = write_csv(tmp_path / "new.csv", windows(1, 3)[0].reshape(-1, 2))
    said = CliRunner().invoke(command, ["predict", str(folder), str(unlabelled), "--json", "-"])
    assert said.exit_code == 0, said.output
    assert [one["name"] for one in json.loads(said.stdout)["predictions"]][:1] == [f"{unlabelled}[0:32]"]


def test_init_writes_a_run_file_that_check_accepts(tmp_path: Path) -> None:
    path, spec = tmp_path / "run.toml", write_folder(tmp_path / "data")
    asked = ["init", "csv", "--task", "signal", "--data", spec, "--output", str(path)]
    said = CliRunner().invoke(command, asked)
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(command, ["check", str(path), "--data", spec])
    assert said.exit_code == 0, said.output
    assert "4 recordings were cut into 4 windows of 128 samples" in said.output.replace("\n", " ")


def data(**options: float) -> SignalData:
    task = discovery.get(parse_run({**RUN, "task": {**TASK, **options}}))
    x, y = windows(0, 10)
    found = task.labelled(torch.from_numpy(x), torch.from_numpy(y))  # type: ignore[attr-defined]
    assert isinstance(found, SignalData)
    return found


def first_batch(found: SignalData, seed: int = 0) -> torch.Tensor:
    return next(iter(found.train_batches(8, torch.Generator().manual_seed(seed))))[0]


def test_training_windows_vary_and_evaluation_never_does() -> None:
    for options in ({"jitter": 0.1}, {"scaling": 0.3}, {"shift": 0.25}):
        varied = data(**options)
        assert not torch.equal(first_batch(varied), first_batch(varied, 1))
        assert torch.equal(first_batch(varied), first_batch(varied)), "the same draw for the same seed"
        assert torch.equal(next(iter(varied.eval_batches(8)))[0], next(iter(data().eval_batches(8)))[0])


def test_jitter_is_in_deviations_of_each_channel() -> None:
    one = replace(data(jitter=0.1), tensors=(torch.zeros(400, WINDOW, 2), torch.zeros(400, dtype=torch.int64)))
    noise_BTC = next(iter(one.train_batches(400, torch.Generator().manual_seed(0))))[0]
    assert torch.allclose(noise_BTC.std(dim=(0, 1)), 0.1 * one.deviation_C, rtol=0.05)


def test_a_moved_window_repeats_its_edge() -> None:
    window_BTC = torch.arange(6.0)[None, :, None].repeat(3, 1, 2)
    found = moved(window_BTC, torch.tensor([0, 2, -3]))[:, :, 0]
    assert found.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3], [3, 4, 5, 5, 5, 5]]


def test_the_last_windows_of_each_class_are_held_out() -> None:
    rest, held = data().hold_out(0.2, seed=5)
    assert held.label_N.tolist() == [0, 0, 1, 1]
    whole = data().tensors[0]
    assert torch.equal(held.tensors[0], whole[[8, 9, 18, 19]])
    assert rest.examples == 16
    assert whole.shape[1] == WINDOW
    assert len(CHANNELS) == whole.shape[2]
