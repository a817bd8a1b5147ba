"""A federation of real processes on this machine that can be broken on purpose, and its records."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 4
NAMES = ("edge-0", "edge-1")
PATIENCE_S = 150.0
RUN_FILE = """
name = "faults"
seed = 3
[task]
name = "image"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = {width}
[frame]
dim = {dim}
[method]
name = "{method}"
[train]
batch = 50
lr = 0.01
[rounds]
total = {total}
min_clients = {min_clients}
deadline_s = {deadline_s}
rejoin_s = 30
evaluate_every = 2
[server]
auth = "{auth}"
certs = "{certs}"
"""


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first truthy value of `condition()`."""
    give_up = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
    return value


class Zygote:
    """Forks `fednc` processes, see fork_server.py."""

    def __init__(self, log: Path, *modules: str) -> None:
        """`modules`: imported before the first fork, beside the usual ones."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
            bufsize=1,
            env=environment(),
        )
        self._codes: dict[int, int] = {}
        self._said: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()
        wait_for(lambda: self._said, "the zygote's imports")

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            word = json.loads(line)
            if "code" in word:
                self._codes[word["pid"]] = word["code"]
            else:
                self._said.append(word)

    def start(self, args: list[str], env: dict[str, str], log: Path, skew_s: float) -> Process:
        """Start one more process."""
        before = len(self._said)
        order = {"args": args, "env": env, "log": str(log), "skew_s": skew_s}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        pid = wait_for(lambda: self._said[before:], "a fork")[0]["pid"]
        return Process(pid, lambda: self._codes.get(pid))

    def close(self) -> None:
        """End it and all its forks."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@dataclass(frozen=True)
class Process:
    """One `fednc` process."""

    pid: int
    code: Callable[[], int | None]

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code, or minus the number of the signal that ended it."""
        wait_for(lambda: self.code() is not None, f"the end of process {self.pid}", timeout_s)
        code = self.code()
        assert code is not None
        return code

    def is_stopped(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "FEDNC_TESTING": "1", **more}


def write_data(folder: Path) -> None:
    """Real handwritten digits: 150 for each client, no two the same, with label skew."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    image_NHW, label_N = (digits.images * 15.9).astype(np.uint8), digits.target
    order_N = np.argsort(label_N[:600], kind="stable")
    for index, name in enumerate([*NAMES, "edge-2"]):
        mine = order_N[index * 150 : index * 150 + 300]
        np.savez(folder / f"{name}.npz", x_train=image_NHW[mine], y_train=label_N[mine])


@dataclass
class Stage:
    """One run: its processes, its folder, its log of faults."""

    zygote: Zygote
    folder: Path
    data: Path
    certs: Path | None = None  # folder of an authority
    min_clients: int = 2
    deadline_s: float = 60
    total: int = ROUNDS
    dim: int = 1200  # gives a model of several megabytes
    width: int = 32
    method: str = "fednc"
    port: int = 0
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        auth = "mtls" if self.certs else "none"
        text = RUN_FILE.format(
            total=self.total,
            dim=self.dim,
            width=self.width,
            method=self.method,
            min_clients=self.min_clients,
            deadline_s=self.deadline_s,
            auth=auth,
            certs=self.certs / "server" if self.certs else "",
        )
        (self.folder / "run.toml").write_text(text)

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def server(self, faults: str = "", skew_s: float = 0) -> Process:
        """Start the server, or start it again."""
        args = ["server", str(self.folder / "run.toml"), "--folder", str(self.run)]
        return self._start([*args, "--listen", f"127.0.0.1:{self.port}"], "server", faults, skew_s)

    def client(self, name: str, faults: str = "", *, port: int = 0, skew_s: float = 0) -> Process:
        """Start a client, or start it again."""
        args = ["client", "--server", f"127.0.0.1:{port or self.port}", "--name", name, "--device", "cpu"]
        args += ["--data", f"npz:{self.data / name}.npz", "--threads", "1", "--once"]
        args += ["--certs", str(self.certs / "nodes" / name)] if self.certs else []
        return self._start(args, name, faults, skew_s)

    def _start(self, args: list[str], name: str, faults: str, skew_s: float) -> Process:
        env = {"FEDNC_FAULT": faults, "FEDNC_FAULT_LOG": str(self.folder / "faults.log")}
        process = self.zygote.start(args, env, self.folder / f"{name}.log", skew_s)
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Kill the processes that still run."""
        for process in self.processes:
            if process.code() is None:
                process.send(signal.SIGKILL)

    # ---- what happened -------------------------------------------------------------------------------------

    def log(self, name: str) -> str:
        """The output of a process."""
        return (self.folder / f"{name}.log").read_text()

    def faults(self) -> list[str]:
        """The faults that happened, as `point:action`."""
        path = self.folder / "faults.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [f"{point}:{action}" for _, point, _, action in map(str.split, lines)]

    def events(self, kind: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The server's events."""
        path = self.run / "events.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [e for e in events if kind in ("", e["kind"]) and fields.items() <= e.items()]

    def expect(self, kind: str, count: int = 1, timeout_s: float = PATIENCE_S, **fields: Any) -> dict[str, Any]:
        """Wait for the `count`-th such event and return it."""

        def found() -> list[dict[str, Any]]:
            return self.events(kind, **fields)[count - 1 :]

        event: dict[str, Any] = wait_for(found, f"event {kind} {fields} number {count}", timeout_s)[0]
        return event

    def rounds(self) -> list[dict[str, Any]]:
        """The record of each round."""
        rounds: list[dict[str, Any]] = json.loads((self.run / "rounds.json").read_text())
        return rounds

    def bytes_up(self) -> int:
        """Bytes that the server has received in the whole run."""
        total: int = json.loads((self.run / "summary.json").read_text())["bytes_up"]
        return total

    def digest(self) -> str:
        """sha256 of the final model."""
        return hashlib.sha256((self.run / "model" / "model.safetensors").read_bytes()).hexdigest()
