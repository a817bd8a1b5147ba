"""`fednc runs`: which runs are in a folder and how each stands, and several runs side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fednc
from fednc.cli.main import app
from fednc.ops.run_folders.compare import differing_keys
from fednc.ops.run_folders.folder import State, is_held, read_run, runs_in
from fednc.server.storage.folder_lock import claimed

RUN: dict[str, Any] = {
    "seed": 7,
    "task": {"classes": [str(d) for d in range(10)], "size": 8, "channels": 1, "width": 8},
    "frame": {"dim": 16},
    "rounds": {"total": 2},
    "split": {"parts": 2, "alpha": 0.3},
    "evaluate": {"test": "digits"},
}


class StopAfterOne(fednc.Callback):
    def on_round(self, run: Any, record: Any) -> None:
        run.stop("good enough")


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    clients = {"anna": "digits", "bert": "digits"}
    fednc.run(RUN, clients, folder=folder / "done", progress=False)
    stopped = {**RUN, "seed": 8, "method": {"name": "fedavg"}}
    fednc.run(stopped, clients, [StopAfterOne()], folder=folder / "group" / "stopped", progress=False)
    return folder


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(runs / "done", tmp_path / "run")
    return tmp_path / "run"


def test_method_data_rounds_metric_and_state_of_each_run(runs: Path, tmp_path: Path) -> None:
    done = command("runs", runs, "--json", tmp_path / "runs.json")
    assert done.exit_code == 0, done.output
    found = {Path(one["folder"]).name: one for one in json.loads((tmp_path / "runs.json").read_text())["runs"]}
    last = json.loads((runs / "done" / "rounds.json").read_text())[-1]["test"]["accuracy"]
    one, other = found["done"], found["stopped"]
    assert (one["state"], one["method"], one["data"], one["task"]) == (
        "finished",
        "fednc",
        "image: digits",
        "image",
    )
    assert (one["rounds"], one["planned"], one["last"]) == (2, 2, last)
    assert (other["state"], other["problem"], other["rounds"]) == ("stopped", "good enough", 1)
    assert f"{last:.1%}" in done.output
    assert "group/stopped" in done.output
    assert command("runs", "--in", runs).output == done.output


def test_a_run_is_running_while_a_process_holds_its_folder(own: Path) -> None:
    assert not is_held(own)
    with claimed(own):
        assert read_run(own).state is State.RUNNING
    assert read_run(own).state is State.FINISHED


def test_looking_at_a_folder_does_not_keep_a_server_out_of_it(own: Path) -> None:
    import fcntl
    import os
    import threading

    handle = os.open(own / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    threading.Timer(0.03, os.close, [handle]).start()
    with claimed(own):
        pass


def checkpoint(folder: Path, rounds: int) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    content = {
        "config": {**RUN, "method": {"name": "fednc"}},
        "history": [{"round": n + 1} for n in range(rounds)],
    }
    (folder / "checkpoints" / f"round-{rounds:06d}.json").write_text(json.dumps(content))


def test_killed_interrupted_and_failed_runs(own: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "killed", 1)
    killed = read_run(tmp_path / "killed")
    assert (killed.state, killed.done, killed.planned, killed.method) == (State.RESUMABLE, 1, 2, "fednc")
    summary = json.loads((own / "summary.json").read_text())
    for ended, expected in (("interrupted", State.RESUMABLE), ("round 2 got fewer replies", State.FAILED)):
        checkpoint(own, 1)
        (own / "starts").write_text("1")
        (own / "summary.json").write_text(json.dumps({**summary, "ended": ended}))
        assert (read_run(own).state, read_run(own).problem) == (expected, ended)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "events.jsonl").write_text('{"kind": "listening"}\n')
    assert read_run(tmp_path / "early").state is State.FAILED


@pytest.mark.parametrize("name", ["summary.json", "rounds.json", "model/model.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"metric": 3}', b"null", b'[{"round": "x", "odd": 1}]']
)
def test_damaged_files_are_listed_and_never_a_traceback(own: Path, name: str, content: bytes) -> None:
    (own / name).write_bytes(content)
    assert read_run(own).state in (State.DAMAGED, State.FINISHED, State.FAILED)
    done = command("runs", own.parent)
    assert done.exit_code == 0, done.output
    assert done.exception is None
    if content in (b"", b"{", b"\xff\xfe", b"null"):
        assert "damaged" in done.output


def test_foreign_folders_are_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "photos" / "2026").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("x")
    assert [(run.path.name, run.state) for run in runs_in(tmp_path)] == [("photos", State.FOREIGN)]
    assert "not a run" in command("runs", tmp_path).output
    missing = command("runs", tmp_path / "nowhere")
    assert missing.exit_code == 3
    assert "no such folder" in missing.output


def test_compare_shows_figures_curves_and_differing_keys(runs: Path, tmp_path: Path) -> None:
    picture, values = tmp_path / "curves.png", tmp_path / "compared.json"
    one, other = runs / "done", runs / "group" / "stopped"
    done = command("runs", "compare", one, other, "--output", picture, "--json", values)
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(values.read_text())
    assert found["differing"]["seed"] == [7, 8]
    assert found["differing"]["method.name"] == ["fednc", "fedavg"]
    assert "rounds.total" not in found["differing"]
    assert [run["label"] for run in found["runs"]] == ["done", "stopped"]
    assert all(word in done.output for word in ("last accuracy", "MiB up", "seconds", "method.name"))
    assert differing_keys([read_run(one), read_run(one)]) == {}


def test_compare_refuses_what_cannot_be_compared(runs: Path, own: Path, tmp_path: Path) -> None:
    assert "two or more" in command("runs", "compare", own, own).output
    assert "no such folder" in command("runs", "compare", own, tmp_path / "nowhere").output
    (tmp_path / "empty").mkdir()
    assert "no evaluated round" in command("runs", "compare", own, tmp_path / "empty").output
    (own / "rounds.json").write_text("{")
    assert "cannot be read" in command("runs", "compare", runs / "done", own).output
