"""A disk that is really full, at the upload or the checkpoint: the run waits for space, the model is the same."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Reference

from support.process_federation import NAMES, Stage, wait_for

SIZE = "64m"
LEFT_BYTES = 48 << 10  # too small for a model, large enough for a line of the log


class SmallDisk:
    """A separate file system that can be filled."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        stat = os.statvfs(self._ballast.parent)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - LEFT_BYTES)

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """The file system for the run's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "fednc-tests", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if mounted.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here (root can): {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_before_the_uploads_and_again_before_the_checkpoint(
    stage: Callable[..., Stage], reference: Reference, small_disk: SmallDisk
) -> None:
    run = stage()
    server, first = run.server("server.checkpoint.begin:2:stop"), run.client(NAMES[0])
    run.expect("ready", node=NAMES[0])
    small_disk.fill()
    second = run.client(NAMES[1])
    wait_for(lambda: "cannot store the reply" in run.log("server"), "an upload without space")
    small_disk.free()
    wait_for(server.is_stopped, "the second checkpoint")
    small_disk.fill()
    server.send(signal.SIGCONT)
    wait_for(lambda: "checkpoint of round 2 cannot be written" in run.log("server"), "a checkpoint without space")
    small_disk.free()
    assert [process.wait() for process in (server, first, second)] == [0, 0, 0], run.log("server")
    assert "Traceback" not in run.log("server")
    assert run.digest() == reference.digest
    assert run.events("done"), "the log goes on when there is space again"
    left = [path.name for path in run.run.rglob("*") if path.name.startswith(".") or "spool" in path.parts]
    assert left == []
