"""Killing the server around the exchange of sums before round 1 does not change the final model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
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
from support.shipped_commands import start

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
    monkeypatch.setenv("FEDNC_TESTING", "1")
    monkeypatch.setenv("FEDNC_FAULT_LOG", str(tmp_path / "faults.log"))
    data = {name: write_scaled(tmp_path / f"{name}.npz", i) for i, name in enumerate(NAMES)}
    run = parse_run(SCALED)
    with LocalGrid(run, [ClientConfig(name=n, data=spec, device="cpu") for n, spec in data.items()]) as grid:
        expected = FederatedRun(run, EventLog()).execute(grid).state.model
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "run.toml").write_text(RUN)

    def server(fault: str) -> subprocess.Popen[bytes]:
        with monkeypatch.context() as only_here:
            only_here.setenv("FEDNC_FAULT", fault)
            place = str(tmp_path / "run")
            return start(tmp_path, "server", ["server", "run.toml", "--folder", place, "--listen", address])

    def client(name: str) -> subprocess.Popen[bytes]:
        own = ["--name", name, "--data", data[name], "--device", "cpu", "--once"]
        return start(tmp_path, name, ["client", "--server", address, *own])

    lives = {"server.data_sums:2:kill": -signal.SIGKILL, "server.checkpoint.begin:2:kill": -signal.SIGKILL, "": 0}
    clients = [client(name) for name in NAMES]
    processes = [*clients]
    try:
        for fault, code in lives.items():
            processes.append(server(fault))
            assert processes[-1].wait(120) == code, (tmp_path / "server.log").read_text()
        assert [process.wait(60) for process in clients] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    asked = [(e["answered"], e["withheld"]) for e in events if e["kind"] == "data-sums"]
    assert asked == [(2, 0)], "the first server died before it was done, the third did not ask"
    assert [e["round"] for e in events if e["kind"] == "resume"] == [1]
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(found[f"model.{key}"], value), key
