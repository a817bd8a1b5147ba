"""Measures `fednc search` beside a plain loop that starts server and clients anew for each trial.

Called by `cli/bench.py`. Starts everything as a user does: a server process and four client processes on this
machine. Both ways run the same trials, a grid of learning rates, each three rounds of digits.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fednc.common.errors import RunFailedError
from fednc.common.waiting import Deadline, wait_until

_RATES = 10  # trials
_LOWEST, _FACTOR = 0.002, 1.6
_ROUNDS = 3
_CLIENTS = 4
_PATIENCE_S = 600.0
_POLL_S = 0.02
_RUN = f"""
name = "digits"
[task]
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
model = "cnn"
size = 8
channels = 1
mean = [0.305]
std = [0.376]
[train]
batch = 32
lr = {{lr}}
[rounds]
total = {_ROUNDS}
min_clients = {_CLIENTS}
[split]
kind = "dirichlet"
parts = {_CLIENTS}
alpha = 0.1
[evaluate]
test = "digits"
[server]
listen = "127.0.0.1:0"
"""
_SEARCH = """
run = "run.toml"
name = "bench"
trials = {trials}
sampler = "Grid"
[space]
train.lr = {{ choices = {rates} }}
"""


def measure(starts: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row: seconds of the whole search, of its trials, and of full starts.

    Args:
        starts: how many trials of the plain loop are run; the rest takes as long.

    Raises:
        RunFailedError: a process failed.
    """
    rates = [round(_LOWEST * _FACTOR**place, 6) for place in range(_RATES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before_s = _cpu_s()
        search_s, trials, first = _search(folder, rates)
        search_cpu_s, before_s = _cpu_s() - before_s, _cpu_s()
        say(f"search: {_RATES} trials in {search_s:.1f} s")
        full_s = []
        for number, rate in enumerate(rates[:starts]):
            full_s.append(_full_start(folder / f"full-{number}", rate, first.get(rate)))
            say(f"full start {number + 1}: {full_s[-1]:.1f} s")
    start_cpu_s = (_cpu_s() - before_s) / len(full_s)
    trial_s, start_s = statistics.median(trials), statistics.median(full_s)
    return [
        {
            "trials": _RATES,
            "rounds": _ROUNDS,
            "clients": _CLIENTS,
            "search_s": round(search_s, 2),
            "trial_s": round(trial_s, 3),
            "full_start_s": round(start_s, 3),
            "search_cpu_s": round(search_cpu_s, 2),
            "full_start_cpu_s": round(start_cpu_s, 2),
            "full_to_trial": round(start_s / trial_s, 2),
            "loop_to_search": round(start_s * _RATES / search_s, 2),
            "loop_to_search_cpu": round(start_cpu_s * _RATES / search_cpu_s, 2),
        }
    ]


def _cpu_s() -> float:
    """Seconds of CPU of all processes that were started and have ended: on a busy machine these are steadier."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _search(folder: Path, rates: list[float]) -> tuple[float, list[float], dict[float, float]]:
    """Seconds of the whole search, with the start of its processes; of each trial; and the metric by rate."""
    (folder / "run.toml").write_text(_RUN.format(lr=rates[0]))
    (folder / "search.toml").write_text(_SEARCH.format(trials=len(rates), rates=rates))
    started = time.monotonic()
    server = _fednc(folder, "search", "search.toml", "--json", "found.json")
    with _clients(folder, folder / "searches" / "bench", server):
        _end(server, folder)
    spent_s = time.monotonic() - started
    found = json.loads((folder / "found.json").read_text())["trials"]
    failed = [trial for trial in found if trial["state"] != "complete"]
    if failed:
        raise RunFailedError(f"trial {failed[0]['number']} is {failed[0]['state']}: {failed[0]['reason']}")
    values = {trial["settings"]["train.lr"]: trial["values"]["primary"] for trial in found}
    return spent_s, [trial["seconds"] for trial in found if trial["number"]], values  # without the first: it waits


def _full_start(folder: Path, rate: float, expected: float | None) -> float:
    """Seconds of one run with processes of its own. Its metric must be that of the search's trial."""
    folder.mkdir()
    (folder / "run.toml").write_text(_RUN.format(lr=rate))
    started = time.monotonic()
    server = _fednc(folder, "server", "run.toml", "--folder", "run")
    with _clients(folder, folder / "run", server, "--once"):
        _end(server, folder)
    spent_s = time.monotonic() - started
    rounds = json.loads((folder / "run" / "rounds.json").read_text())
    got = rounds[-1]["pooled"]["accuracy"]
    if expected is not None and got != expected:
        raise RunFailedError(f"lr {rate}: the search's trial gave {expected}, a run of its own {got}")
    return spent_s


@contextmanager
def _clients(folder: Path, run: Path, server: subprocess.Popen[bytes], *options: str) -> Iterator[None]:
    """Four clients, from the moment the server listens; each has the same part of the data in every start."""
    port = wait_until(lambda: _port(run) or server.poll() is not None, Deadline(_PATIENCE_S), _POLL_S)
    started = []
    for number in range(_CLIENTS):
        part = ("--partition", f"{number}/{_CLIENTS}", "--name", f"client-{number}")
        address = ("--server", f"127.0.0.1:{port}", "--data", "digits", "--device", "cpu", "--threads", "1")
        started.append(_fednc(folder, "client", *address, *part, *options))
    try:
        yield
    finally:
        for client in started:
            client.terminate()
        for client in started:
            client.wait()


def _port(run: Path) -> int:
    path = run / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [event["port"] for event in map(json.loads, lines) if event["kind"] == "listening"]
    return int(found[-1]) if found else 0


def _fednc(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fednc.cli.start", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    code = process.wait(_PATIENCE_S)
    if code:
        logs = "".join(path.read_text(errors="replace")[-500:] for path in sorted(folder.glob("*.log")))
        raise RunFailedError(f"a process ended with {code}: {logs}")
