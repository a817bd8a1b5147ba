"""Killing the server around the probe changes neither the pick nor the final model, and clients follow."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run, read_run_file
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.server_lives import ServerLives

NAMES = ("anna", "bert")
RUN = """
seed = 1
[task]
name = "quantum"
classes = ["even", "odd"]
values = 5
[method]
name = "fedavg"
[train]
optimizer = "adam"
lr = 0.05
epochs = 4
[rounds]
total = 3
min_clients = 2
rejoin_s = 30
[split]
kind = "iid"
parts = 2
[server]
auth = "none"
[probe]
steps = 10
seeds = 1
[[probe.families]]
name = "quantum"
axis = "layers"
values = [1, 2, 6]
"""


@pytest.mark.timeout(400)
def test_a_killed_server_keeps_the_pick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    run = read_run_file(tmp_path / "run.toml")
    members = [ClientConfig(name=name, data="parity:5", device="cpu") for name in NAMES]
    with LocalGrid(run, members) as grid:
        expected = FederatedRun(parse_run(run.model_dump()), EventLog()).execute(grid).state.model
    # while it asks; after the pick, before any checkpoint; after a checkpoint with the pick
    lives = {
        "server.probe:2:kill": -signal.SIGKILL,
        "server.checkpoint.begin:1:kill": -signal.SIGKILL,
        "server.checkpoint.begin:2:kill": -signal.SIGKILL,
        "": 0,
    }
    with ServerLives(tmp_path, monkeypatch) as processes:
        clients = [
            processes.client(name, "parity:5", "--partition", f"{part}/2") for part, name in enumerate(NAMES)
        ]
        for fault, code in lives.items():
            processes.server(fault, code, timeout_s=150)
        assert [process.wait(60) for process in clients] == [0, 0]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert len([event for event in events if event["kind"] == "probe"]) == 1, "asked again after the pick"
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(found[f"model.{key}"], value), key
