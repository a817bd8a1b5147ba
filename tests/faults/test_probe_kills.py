"""Killing the server around the probe changes neither the pick nor the final model, and clients follow."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run, read_run_file
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.shipped_commands import start

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
    monkeypatch.setenv("FEDNC_TESTING", "1")
    monkeypatch.setenv("FEDNC_FAULT_LOG", str(tmp_path / "faults.log"))
    (tmp_path / "run.toml").write_text(RUN)
    run = read_run_file(tmp_path / "run.toml")
    members = [ClientConfig(name=name, data="parity:5", device="cpu") for name in NAMES]
    with LocalGrid(run, members) as grid:
        expected = FederatedRun(parse_run(run.model_dump()), EventLog()).execute(grid).state.model
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def server(fault: str) -> subprocess.Popen[bytes]:
        with monkeypatch.context() as only_here:
            only_here.setenv("FEDNC_FAULT", fault)
            place = str(tmp_path / "run")
            return start(tmp_path, "server", ["server", "run.toml", "--folder", place, "--listen", address])

    def client(name: str, part: int) -> subprocess.Popen[bytes]:
        own = ["--name", name, "--data", "parity:5", "--device", "cpu", "--once", "--partition", f"{part}/2"]
        return start(tmp_path, name, ["client", "--server", address, *own])

    # while it asks; after the pick, before any checkpoint; after a checkpoint with the pick
    lives = {
        "server.probe:2:kill": -signal.SIGKILL,
        "server.checkpoint.begin:1:kill": -signal.SIGKILL,
        "server.checkpoint.begin:2:kill": -signal.SIGKILL,
        "": 0,
    }
    clients = [client(name, part) for part, name in enumerate(NAMES)]
    processes = [*clients]
    try:
        for fault, code in lives.items():
            processes.append(server(fault))
            assert processes[-1].wait(150) == code, (tmp_path / "server.log").read_text()
        assert [process.wait(60) for process in clients] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert len([event for event in events if event["kind"] == "probe"]) == 1, "asked again after the pick"
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(found[f"model.{key}"], value), key
