"""`fednc search` as users start it: killed and continued, shown, written as a run file; over the link too."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="pip install 'fednc[search]'")

from fednc.common.config.run import read_run_file
from fednc.ops.search.plan import read_search_file
from fednc.ops.search.study import read_search
from support.command_processes import ends, fednc, port_of, wait_for

RUN = """
name = "digits"
[task]
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = 8
[frame]
dim = 16
[rounds]
total = 12
min_clients = 2
[split]
parts = 2
[server]
listen = "127.0.0.1:0"
stop_s = 5
"""
SEARCH = """
run = "run.toml"
trials = 4
objectives = ["primary", "bytes_up"]
sampler = "Random"
pruner = { name = "Threshold", lower = 0.0 }
set.rounds.total = 2
[space]
train.lr = { low = 0.001, high = 0.1, log = true }
link.codec = { choices = ["fp32", "bf16"] }
"""
LOCAL = '[local]\ndata = "digits"\nclients = 2\ndevice = "cpu"\n'


def write(folder: Path, more: str = "") -> Path:
    (folder / "run.toml").write_text(RUN)
    (folder / "search.toml").write_text(SEARCH + more)
    return folder / "search.toml"


def trials(file: Path) -> list[Any]:
    plan = read_search_file(file)
    study = plan.folder / "study.db"
    return read_search(plan).trials if study.exists() and study.stat().st_size else []


def test_a_search_is_killed_continued_shown_and_written(tmp_path: Path) -> None:
    file = write(tmp_path, LOCAL)
    first = fednc("search", file, cwd=tmp_path)
    wait_for(lambda: any(trial.state == "running" and trial.curve for trial in trials(file)))
    first.send_signal(signal.SIGKILL)
    assert ends(first)[0] == -signal.SIGKILL
    code, said = ends(fednc("search", "suggest", file, "train.lr=0.05", "link.codec=bf16", cwd=tmp_path))
    assert code == 0, said
    code, said = ends(fednc("search", file, "--json", "found.json", cwd=tmp_path))
    assert code == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    # Killed in its last trial, it still does four: the person's guess, and the killed trial's settings wait.
    counted = [trial for trial in found["trials"] if not trial["superseded"] and trial["state"] != "waiting"]
    assert [trial["state"] for trial in counted] == ["complete"] * 4
    assert {"train.lr": 0.05, "link.codec": "bf16"} in [trial["settings"] for trial in counted]
    up = {trial["settings"]["link.codec"]: trial["values"]["bytes_up"] for trial in counted}
    assert len(up) < 2 or up["bf16"] < up["fp32"]
    code, said = ends(fednc("search", "best", file, "--write", "best.toml", cwd=tmp_path))
    assert code == 0, said
    best = read_run_file(tmp_path / "best.toml")
    assert best.rounds.total == 12, "[set] holds for trials only"
    assert {"train.lr": best.train.lr, "link.codec": best.link.codec} == found["best_settings"]
    assert tomllib.loads((tmp_path / "best.toml").read_text())["task"] == tomllib.loads(RUN)["task"]
    code, said = ends(fednc("search", "show", file, cwd=tmp_path))
    assert code == 0, said
    assert "search.png" in said
    assert (tmp_path / "searches" / "search" / "search.png").stat().st_size > 5000


def test_clients_over_the_link_stay_for_all_trials(tmp_path: Path) -> None:
    file = write(tmp_path)
    server = fednc("search", file, "--trials", 3, cwd=tmp_path)
    port = port_of(tmp_path / "searches" / "search")
    clients = [
        fednc("client", "--server", f"127.0.0.1:{port}", "--name", name, "--data", "digits", cwd=tmp_path)
        for name in ("anna", "bert")
    ]
    try:
        code, said = ends(server, 120)
        assert code == 0, said
        assert [trial.state for trial in trials(file)] == ["complete"] * 3
        log = (tmp_path / "searches" / "search" / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in log]
        assert sum(event["kind"] == "attend" for event in events) == 2, "nobody connected twice"
        assert {event["kind"] for event in events} & {"lost", "quarantined"} == set()
        assert all(client.poll() is None for client in clients), "they wait for the next run"
    finally:
        for client in clients:
            client.kill()
            client.communicate()
