"""`fednc compare`, killed at the worst moments and started again: no row is lost, none is run twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fednc.bench.compare.run_archive import ARCHIVE, read_runs
from support.process_federation import environment

COMPARISON = """
name = "tiny"
seeds = [1, 2]
[data]
source = "digits"
train_examples = 100
test_examples = 50
[tuning]
rates = [0.1]
[run]
frame.dim = 16
rounds.total = 1
split = { kind = "iid", parts = 2 }
[run.task]
name = "image"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = 8
[[settings]]
name = "easy"
[[variants]]
name = "fedavg"
method.name = "fedavg"
"""


def compare(folder: Path, fault: str = "") -> int:
    (folder / "tiny.toml").write_text(COMPARISON)
    command = [sys.executable, "-m", "fednc.cli.main", "compare", str(folder / "tiny.toml")]
    faults = {"FEDNC_FAULT": fault, "FEDNC_FAULT_LOG": str(folder / "faults.log")} if fault else {}
    options = ["--results", str(folder / "results"), "--workers", "1"]
    return subprocess.run([*command, *options], env=environment(**faults), check=False).returncode


@pytest.mark.parametrize(
    ("fault", "loose", "archived"),
    [("file.half:5:kill", {1, 2}, False), ("compare.archived:1:kill", {3}, True)],
)
def test_a_comparison_that_was_killed_goes_on(fault: str, loose: set[int], archived: bool, tmp_path: Path) -> None:
    """While a row is half written, and between writing the archive and deleting the files."""
    folder = tmp_path / "results" / "tiny"
    assert compare(tmp_path, fault) == -signal.SIGKILL
    assert len([*folder.glob("*.json")]) in loose
    assert (folder / ARCHIVE).exists() == archived
    before = read_runs(folder)
    assert compare(tmp_path) == 0
    after = read_runs(folder)
    assert not [*folder.glob("*.json")]
    assert len(after) == 3
    assert {name: after[name] for name in before} == before, "a row was run again: its duration differs"
