"""A task that asks for sums of the data before round 1: the same bits on stock Flower as in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.installed_plugins import Site, site
from support.prototype_tasks import SCALED, write_scaled
from support.stock_flower import stock_flower

BUNDLE = Path(__file__).parents[2] / "deploy" / "flower"
TESTS = Path(__file__).parents[1]
__all__ = ["site"]
NAMES = ("anna", "bert")


@pytest.mark.timeout(300)
def test_federated_normalisation_has_the_same_bits_on_stock_flower(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from support.prototype_tasks import ScaledTask\n"
    site.install("scaled-lines", {"fednc.tasks": {"scaled": "{}:ScaledTask"}}, source)
    monkeypatch.setenv("PYTHONPATH", f"{site.folder}:{TESTS}")
    data = {name: write_scaled(tmp_path / f"{name}.npz", i) for i, name in enumerate(NAMES)}
    run = parse_run({**SCALED, "server": {"runs": str(tmp_path / "runs")}})
    clients = [ClientConfig(name=name, data=spec, device="cpu") for name, spec in data.items()]
    with LocalGrid(run, clients) as grid:
        expected = FederatedRun(run, EventLog()).execute(grid).state.model
    with stock_flower(tmp_path) as flower:
        for name, spec in data.items():
            flower.add_node(name, {"name": name, "data": spec, "device": "cpu"})
        flower.run(BUNDLE, {"run": json.dumps(run.model_dump(mode="json"))})
    (folder,) = (tmp_path / "runs").iterdir()
    found = load_file(folder / "model" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(found[f"model.{key}"], value), key
    assert bool((found["model.0.mean"][0] > 40).all()), "the first column has a mean of 50"
