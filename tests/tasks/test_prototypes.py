"""Somebody else's tasks, written against the contract alone, run in one process and over the link alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from typer.testing import CliRunner

from fednc.bench.local_grid import LocalGrid
from fednc.cli.main import app as command
from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.client.training.round_state import Past
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.contract_run import assert_same_bits
from support.prototype_tasks import CLINIC, LANES, LINE, installed, write_clinic, write_line
from support.runs_on_grids import RestartingGrid, in_one_process, over_the_link


def run_and_clients(folder: Path, values: dict[str, Any]) -> tuple[RunConfig, list[ClientConfig]]:
    write, ending = (write_clinic, "csv") if values["task"]["name"] == "clinic" else (write_line, "npz")
    clients = [
        ClientConfig(name=f"c{i}", data=write(folder / f"c{i}.{ending}", i), device="cpu", val_share=0.2)
        for i in range(2)
    ]
    return parse_run({**values, "evaluate": {"test": write(folder / f"test.{ending}", 9)}}), clients


@pytest.mark.parametrize("values", [CLINIC, LINE, LANES], ids=["clinic", "line", "lanes"])
def test_a_custom_task_has_the_same_bits_in_one_process_and_over_the_link(
    values: dict[str, Any], tmp_path: Path
) -> None:
    with installed():
        run, clients = run_and_clients(tmp_path, values)
        local = in_one_process(run, clients, flower_app.app)
        linked = over_the_link(run, clients, flower_app.app, tmp_path, agreed=True)
    assert_same_bits(local, linked)
    last = local.history.rounds[-1]
    if values is CLINIC:
        assert last.test["auroc"] > 0.9
        assert last.test["auroc_error"] < 0.02
        assert 0.5 < last.test["balanced_accuracy"] < 1
        assert set(last.worst_client) == {"name", "auroc"}
    elif values is LANES:
        assert last.test["rmse"] < 3  # the bias of each client is not the server's
    else:
        assert local.history.primary.name == "rmse"
        assert last.test["rmse"] < 0.2
        assert local.history.summary()["best"] == min(value for _, value in local.history.curve)
        others = [value["rmse"] for value in (last.worst_client, last.pooled)]
        assert others[0] >= others[1]  # the worst client has the largest error
        assert last.drift is None


@pytest.mark.parametrize("values", [CLINIC, LINE], ids=["clinic", "line"])
def test_its_model_predicts_what_the_run_measured(values: dict[str, Any], tmp_path: Path) -> None:
    with installed():
        run, clients = run_and_clients(tmp_path, values)
        result = in_one_process(run, clients, flower_app.app)
        folder = tmp_path / "run"
        folder.mkdir()
        write_files(folder, result, summary_of("run", result))
        model = load(folder)
        said = CliRunner().invoke(command, ["predict", str(folder), run.evaluate.test, "--json", "-"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    primary = model.task.primary.name
    assert found["metrics"][primary] == result.history.rounds[-1].test[primary]
    assert json.loads((folder / "summary.json").read_text())[primary] == found["metrics"][primary]
    assert len(found["predictions"]) == found["examples"]
    written = [path.read_text() for path in (folder / "examples").glob("*")]
    assert written == (["200"] if values is LINE else [])


def test_a_method_that_needs_classes_is_refused_for_a_task_without_any() -> None:
    with installed(), pytest.raises(ConfigError, match="'line' has none"):
        discovery.get(parse_run({**LINE, "method": {"name": "fednc"}}))


def test_a_custom_classifier_is_at_most_forty_lines() -> None:
    text = (Path(__file__).parents[1] / "support" / "prototype_tasks.py").read_text()
    written = text.partition("# ---- clinic: begin")[2].partition("# ---- clinic: end")[0]
    assert len([line for line in written.splitlines() if line.strip()]) <= 40


def model_of(grid: LocalGrid, run: RunConfig) -> dict[str, torch.Tensor]:
    with grid:
        return FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of)).state.model


def test_keys_are_aggregated_as_the_task_says_and_local_ones_survive_a_restart(tmp_path: Path) -> None:
    data = {"few": write_line(tmp_path / "few.npz", 1, rows=60), "many": write_line(tmp_path / "many.npz", 2)}

    def clients(state: str) -> list[ClientConfig]:
        return [ClientConfig(name=name, data=spec, device="cpu", state=state) for name, spec in data.items()]

    with installed():
        run, _ = run_and_clients(tmp_path, LANES)
        whole = model_of(LocalGrid(run, clients("")), run)
        restarted = model_of(RestartingGrid(run, clients(str(tmp_path / "state"))), run)
        forgetful = model_of(RestartingGrid(run, clients("")), run)
    assert set(whole) == {"weight", "turn", "lane", "offset"}  # the bias stays with each client
    assert torch.equal(whole["offset"], torch.tensor([0.25]))
    assert not torch.equal(whole["lane"], torch.zeros(1))
    assert all(torch.equal(whole[key], restarted[key]) for key in whole)
    assert not all(torch.equal(whole[key], forgetful[key]) for key in whole)
    kept = sorted(path.name for path in (tmp_path / "state").glob("*/*"))
    assert kept == ["kept.2.safetensors"] * 2 + ["kept.3.safetensors"] * 2


def test_a_damaged_file_of_kept_state_loses_only_its_own_content(tmp_path: Path) -> None:
    Past(RecordDict(), 1, tmp_path).write("kept", {"bias": torch.ones(1)})
    Past(RecordDict(), 2, tmp_path).write("kept", {"bias": torch.zeros(1)})
    (tmp_path / "kept.2.safetensors").write_bytes(b"nonsense")
    assert torch.equal(Past(RecordDict(), 3, tmp_path).read("kept")["bias"], torch.ones(1))
