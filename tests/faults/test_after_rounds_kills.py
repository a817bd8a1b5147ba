"""Killing server and client in the exchanges after the last round changes neither model nor temperature."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.model_export import load
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.server_lives import ServerLives

NAMES = ("anna", "bert")
RUN = """
seed = 1
[task]
name = "image"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = 8
[frame]
dim = 16
[train]
batch = 32
lr = 0.05
[rounds]
total = 2
min_clients = 2
rejoin_s = 30
keep = "best"
[split]
parts = 2
[evaluate]
test = "digits"
[personal]
train = "head"
epochs = 1
"""


def test_killed_after_the_last_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = parse_run(tomllib.loads(RUN))
    configs = [ClientConfig(name=name, data="digits", device="cpu", val_share=0.2) for name in NAMES]
    with LocalGrid(run, configs) as grid:
        expected = FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of))
    (tmp_path / "run.toml").write_text(RUN + '[server]\nauth = "none"\n')

    first = "server.data:1:delay_ms=1,server.calibrate:2:kill"
    lives = {first: -signal.SIGKILL, "server.personal:1:kill": -signal.SIGKILL, "": 0}
    with ServerLives(tmp_path, monkeypatch) as processes:

        def client(name: str) -> subprocess.Popen[bytes]:
            part = f"{NAMES.index(name)}/2"
            own = ["--partition", part, "--val-share", "0.2", "--state", str(tmp_path / "state")]
            return processes.client(name, "digits", *own)

        clients = {name: client(name) for name in NAMES}
        for number, (fault, code) in enumerate(lives.items()):
            processes.server(fault, code, timeout_s=250)
            if number == 0:  # a client dies too, and comes back as a new process
                clients["bert"].kill()
                clients["bert"].wait()
                clients["bert"] = client("bert")
        assert [process.wait(120) for process in clients.values()] == [0, 0]
    folder = tmp_path / "run"
    found = load_file(folder / "model" / "model.safetensors")
    for key, value in expected.state.model.items():
        assert torch.equal(found[f"model.{key}"], value), key
    summary = json.loads((folder / "summary.json").read_text())
    assert load(folder).temperature == expected.after.temperature == summary["calibration"]["temperature"]
    assert summary["personal"] == expected.after.personal
    assert summary["kept_round"] == expected.state.completed
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    assert [(row["round"], row["client"]) for row in rows] == [(n, name) for n in (1, 2) for name in NAMES]
    own = sorted((tmp_path / "state").glob("*/personal"))
    assert len(own) == 2
    assert {load(path).temperature for path in own} == {expected.after.temperature}
