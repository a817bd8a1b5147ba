"""Killing the server around the exchange of sums before round 1 does not change the final model."""

from __future__ import annotations

import json
import os
import signal
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
from support.server_lives import ServerLives

__all__ = ["site"]

TESTS = Path(__file__).parents[1]
NAMES = ("anna", "bert")
RUN = """
seed = 1
[task]
name = "scaled"
[method]
name = "fedavg"
[train]
batch = 16
lr = 0.02
epochs = 4
[rounds]
total = 3
min_clients = 2
rejoin_s = 30
[server]
auth = "none"
"""


def test_a_killed_server_asks_again_only_before_its_first_checkpoint(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from support.prototype_tasks import ScaledTask\n"
    site.install("scaled-lines", {"fednc.tasks": {"scaled": "{}:ScaledTask"}}, source)
    monkeypatch.setenv("PYTHONPATH", f"{site.folder}{os.pathsep}{TESTS}")
    data = {name: write_scaled(tmp_path / f"{name}.npz", i) for i, name in enumerate(NAMES)}
    run = parse_run(SCALED)
    with LocalGrid(run, [ClientConfig(name=n, data=spec, device="cpu") for n, spec in data.items()]) as grid:
        expected = FederatedRun(run, EventLog()).execute(grid).state.model
    (tmp_path / "run.toml").write_text(RUN)

    lives = {"server.data_sums:2:kill": -signal.SIGKILL, "server.checkpoint.begin:2:kill": -signal.SIGKILL, "": 0}
    with ServerLives(tmp_path, monkeypatch) as processes:
        clients = [processes.client(name, data[name]) for name in NAMES]
        for fault, code in lives.items():
            processes.server(fault, code, timeout_s=120)
        assert [process.wait(60) for process in clients] == [0, 0]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    asked = [(e["answered"], e["withheld"]) for e in events if e["kind"] == "data-sums"]
    assert asked == [(2, 0)], "the first server died before it was done, the third did not ask"
    assert [e["round"] for e in events if e["kind"] == "resume"] == [1]
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(found[f"model.{key}"], value), key
