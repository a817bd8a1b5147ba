"""What a client keeps in memory is bounded and read-only for apps; an early signal is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fednc.client.app.resident_run import Residents
from fednc.client.link.blob_cache import BlobCache


def test_the_runs_used_last_stay_loaded() -> None:
    residents, loaded = Residents(runs=2), list[tuple[int, int]]()

    def use(run: int, node: int) -> Any:
        return residents.get(run, node, lambda: loaded.append((run, node)) or (run, node))  # type: ignore

    many = [(1, node) for node in range(50)]
    assert [use(*key) for key in many] == [use(*key) for key in many] == many
    assert loaded == many, "each is loaded once"
    use(2, 0)
    use(1, 0)
    use(3, 0)  # run 2, the least recently used, is dropped
    use(1, 1)
    assert loaded == [*many, (2, 0), (3, 0)]
    use(2, 0)
    assert loaded[-1] == (2, 0)
    residents.take(2, 0)
    residents.take(99, 0)
    use(2, 0)
    assert loaded[-2:] == [(2, 0), (2, 0)]


def test_nodes_of_one_process_prepare_at_once() -> None:
    residents, switch = Residents(runs=2), sys.getswitchinterval()

    def go_through_runs(node: int) -> None:
        for run in range(3000):
            assert residents.get(run, node, lambda run=run: (run, node)) == (run, node)  # type: ignore
            residents.take(run, node)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(go_through_runs, range(4)))
    finally:
        sys.setswitchinterval(switch)


def test_a_blob_of_the_cache_cannot_be_written_to() -> None:
    cache = BlobCache()
    cache.add(b"digest", bytearray(b"frame"))
    with pytest.raises(TypeError, match="read-only"):
        memoryview(cache[b"digest"])[0] = 1
    assert bytes(cache[b"digest"]) == b"frame"


def test_a_pause_that_comes_while_the_client_loads_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fednc.cli.main", "client", "--server", "127.0.0.1:1", "--data", "digits"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as client:
        try:
            _until(lambda: _catches(client.pid, signal.SIGUSR1))
            os.kill(client.pid, signal.SIGUSR1)
            _until(lambda: b"paused" in (tmp_path / "log").read_bytes() or client.poll() is not None)
            assert client.poll() is None, "the signal ended it"
        finally:
            client.kill()


def _catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _until(condition: Any) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)
