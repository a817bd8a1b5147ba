"""The demo as users run it: one server, four client processes, gRPC, real digits, real files."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fednc.bench.demo import METHODS, DemoProcesses, demo_config, make_split, parts_of
from fednc.cli.main import app
from fednc.common.model_export import load

SEEDS = (21, 22, 23)  # not the seeds that learning rates and defaults were chosen on
METHOD_KEYS = {"accuracy", "best", "last5", "rounds_to_fedavg_best", "drift", "nc1", "lr", "client_pids"}


@contextlib.contextmanager
def unwatched(_run, _events):
    yield SimpleNamespace(watch=lambda _federation, _port: None)


@pytest.mark.timeout(300)
def test_fednc_ends_above_fedavg_on_unseen_seeds(tmp_path):
    """Four client processes serve six runs; one run is checked closely."""
    first = demo_config("fedavg")
    last5 = {}
    with DemoProcesses(tmp_path / "clients.log", parts_of(first)) as stage:
        for seed in SEEDS:
            make_split(demo_config("fedavg", seed=seed))
            for method in METHODS:
                finished = stage.serve(demo_config(method, seed=seed), tmp_path / f"{method}-{seed}", unwatched)
                last5[method, seed] = finished.summary["last5"]
    assert {client["name"] for client in finished.summary["clients"]} == {f"edge-{i}" for i in range(4)}
    assert len({client["pid"] for client in finished.summary["clients"]}) == 4
    for seed in SEEDS:
        assert last5["fednc", seed] > last5["fedavg", seed], (seed, last5)


@pytest.mark.timeout(180)
def test_the_demo_command_writes_what_it_promises(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--runs", str(tmp_path), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.glob("demo-*")
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["methods"]) == set(METHODS)
    for one in summary["methods"].values():
        assert set(one) == METHOD_KEYS
        assert len(set(one["client_pids"])) == 4
    assert summary["methods"]["fedavg"]["client_pids"] == summary["methods"]["fednc"]["client_pids"]
    assert summary["bytes_up"] > 0
    assert summary["bytes_down"] > 0
    assert len(summary["split_sha256"]) == 64
    for picture in ("curves.png", "geometry.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    predicted = CliRunner().invoke(
        app, ["predict", str(folder), "digits", "--json", str(tmp_path / "predicted.json")]
    )
    assert predicted.exit_code == 0, predicted.output
    assert json.loads((tmp_path / "predicted.json").read_text())["metrics"]["accuracy"] == pytest.approx(
        summary["methods"]["fednc"]["accuracy"], abs=1e-9
    )
    assert not load(folder).training
