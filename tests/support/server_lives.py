"""A server that is killed at fault points and started again, on one address, and clients that outlive it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Self

import pytest

from support.shipped_commands import start


class ServerLives:
    """The processes of a run whose file is `folder`/run.toml; those that are left are killed with the block."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        monkeypatch.setenv("FEDNC_TESTING", "1")
        monkeypatch.setenv("FEDNC_FAULT_LOG", str(folder / "faults.log"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def client(self, name: str, data: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A client that takes part in one run."""
        own = ["--name", name, "--data", data, "--device", "cpu", "--once", *arguments]
        return self._kept(start(self._folder, name, ["client", "--server", self._address, *own]))

    def server(self, fault: str, code: int, timeout_s: float) -> None:
        """One life of the server, with the fault injected; it must end with this code."""
        with self._monkeypatch.context() as only_here:
            only_here.setenv("FEDNC_FAULT", fault)
            place = str(self._folder / "run")
            arguments = ["server", "run.toml", "--folder", place, "--listen", self._address]
            process = self._kept(start(self._folder, "server", arguments))
        assert process.wait(timeout_s) == code, (self._folder / "server.log").read_text()

    def _kept(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        self._processes.append(process)
        return process
