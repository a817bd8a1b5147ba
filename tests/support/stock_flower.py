"""A stock Flower installation on loopback for one test: a SuperLink, its SuperNodes, `flwr run`.

Uses a temporary folder and process groups that end with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fednc.common.process.flower_env import quiet_flower

BIN = Path(sys.executable).parent
_START_S, _RUN_S = 60.0, 240.0


def environment(home: Path) -> dict[str, str]:
    """One thread per process, because the rounding of sums depends on the number of threads."""
    quiet_flower()
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "FLWR_HOME": str(home), "PATH": path, "NO_COLOR": "1", "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_toml(values: Mapping[str, Any]) -> str:
    """Flat values as TOML. JSON strings and numbers are also valid TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


class StockFlower:
    """One SuperLink, with `simulated` nodes in its simulation engine."""

    def __init__(self, folder: Path, simulated: int = 0) -> None:
        self.folder = folder
        self.env = environment(folder / "home")
        self._groups: list[subprocess.Popen[bytes]] = []
        self._seen: set[str] = set()  # number of runs that have ended
        self._port = free_port()
        (folder / "home").mkdir(parents=True)
        connection = {"address": f"127.0.0.1:{self._port}", "insecure": True}
        options = f"[superlink.lab.options]\nnum-supernodes = {simulated}\n" if simulated else ""
        text = f'[superlink]\ndefault = "lab"\n[superlink.lab]\n{as_toml(connection)}{options}'
        (folder / "home" / "config.toml").write_text(text)
        extra = ["--simulation"] if simulated else []
        self._start("superlink", "flower-superlink", "--insecure", "--port", str(self._port), *extra)
        self._await_health()

    def _start(self, log: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{log}.log").open("ab") as out:
            self._groups.append(
                subprocess.Popen(
                    [BIN / program, *arguments],
                    env=self.env,
                    cwd=self.folder,
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def _await_health(self) -> None:
        give_up = time.monotonic() + _START_S
        while True:
            assert self._groups[0].poll() is None, self.logs()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health"):
                return
            assert time.monotonic() < give_up, self.logs()
            time.sleep(0.2)

    def add_node(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a SuperNode with this node configuration."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        self._start(
            name,
            "flower-supernode",
            "--insecure",
            "--superlink",
            f"127.0.0.1:{self._port}",
            "--port",
            str(free_port()),
            "--node-config",
            pairs,
        )

    def run(self, app: Path, config: Mapping[str, Any] | None = None) -> str:
        """Run `flwr run` to its end and return its log. Without `config`, run-config.toml must exist."""
        overrides = self.folder / "run-config.toml"
        if config:
            overrides.write_text(as_toml(config))
        command = [BIN / "flwr", "run", app, "lab", "--stream", "-c", overrides]
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=_RUN_S, check=False
        )
        assert self.status() == "finished:completed", done.stdout + done.stderr + self.logs()
        return done.stdout

    def status(self) -> str:
        """How the last run of this installation ended; the exit code of `flwr run` is always 0."""
        runs = [run for run in self._listed("ls")["runs"] if run["run-id"] not in self._seen]
        self._seen |= {run["run-id"] for run in runs}
        assert len(runs) <= 1, runs
        return str(runs[0]["status"]) if runs else "not started"

    def await_nodes(self, count: int) -> None:
        """Wait until that many SuperNodes are online."""
        give_up = time.monotonic() + _START_S
        while (
            len([node for node in self._listed("supernode", "list")["nodes"] if node["status"] == "online"])
            < count
        ):
            assert time.monotonic() < give_up, self.logs()
            time.sleep(0.5)

    def _listed(self, *words: str) -> Any:
        command = [BIN / "flwr", *words, "lab", "--format", "json"]
        found = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, check=True)
        return json.loads(found.stdout)

    def logs(self) -> str:
        """The output of every process."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        """End every process that was started, with its children."""
        for process in reversed(self._groups):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def stock_flower(folder: Path, simulated: int = 0) -> Iterator[StockFlower]:
    """A StockFlower that is stopped at the end of the block."""
    started = StockFlower(folder, simulated)
    try:
        yield started
    finally:
        started.stop()
