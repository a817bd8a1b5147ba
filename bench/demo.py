"""`fednc demo`: one server and four client processes run fedavg and then fednc, with the same split and seed.

Uses the real programs: the server in this process, `fednc client` in processes of their own, gRPC between them.
Writes one folder with a summary, both models and two pictures.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

from fednc.bench.compare import plots
from fednc.bench.compare.heat_maps import geometry
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.files import write_atomically
from fednc.common.process.interrupt import run_until_interrupted
from fednc.common.tasks import discovery
from fednc.server.link.federation import Federation
from fednc.server.main import Finished, run_server
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.run_folder import run_folder

METHODS = ("fedavg", "fednc")
# The best of one grid on a validation split, found by `fednc compare bench/configs/demo.toml`. The table is in
# results/demo/table.md.
LEARNING_RATES = {"fedavg": 0.01, "fednc": 0.1}

_KEPT = ("best", "last5", "drift", "nc1")  # of a run's summary, beside its metric

Watch = Callable[[RunConfig, EventLog], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class DemoResult:
    """The folder of the demo's files, and its summary."""

    folder: Path
    summary: dict[str, Any]


class DemoProcesses:
    """Client processes that stay for as many runs as are served to them, one after the other."""

    def __init__(self, log: Path, clients: int) -> None:
        self._log, self._clients = log, clients
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def serve(self, run: RunConfig, folder: Path, watch: Watch) -> Finished:
        """Serve one run in this process. The first call starts the clients; later ones find them waiting."""
        folder.mkdir(parents=True)
        events = EventLog(folder / "events.jsonl")
        here = run.server.model_copy(update={"listen": f"127.0.0.1:{self._port}"})
        with watch(run, events) as view:

            def listening(federation: Federation, port: int) -> None:
                view.watch(federation, port)
                self._port = port
                if not self._processes:
                    self._start_clients()

            served = run_server(run.model_copy(update={"server": here}), folder, events, on_listening=listening)
            finished = run_until_interrupted(served)
        events.close()
        return finished

    def _start_clients(self) -> None:
        for index in range(self._clients):
            command = [sys.executable, "-m", "fednc.cli.main", "client", "--server", f"127.0.0.1:{self._port}"]
            command += ["--data", "digits", "--name", f"edge-{index}", "--partition", f"{index}/{self._clients}"]
            command += ["--threads", "1", "--device", "cpu"]
            with self._log.open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))


def demo_config(method: str, *, seed: int | None = None, runs: str = "runs") -> RunConfig:
    """The configuration of the demo's run with one method."""
    values = tomllib.loads(resources.files("fednc.bench").joinpath("demo.toml").read_text())
    values["method"] = {"name": method}
    values["train"]["lr"] = LEARNING_RATES[method]
    values["server"]["runs"] = runs
    if seed is not None:
        values["seed"] = values["split"]["seed"] = seed
    return parse_run(values, source="bench/demo.toml")


def run_demo(watch: Watch, *, seed: int | None = None, runs: str = "runs") -> DemoResult:
    """Run both methods with real processes, and write the files."""
    started = time.monotonic()
    configs = {method: demo_config(method, seed=seed, runs=runs) for method in METHODS}
    first = configs[METHODS[0]]
    split_sha256 = make_split(first)
    folder = run_folder(first)
    with DemoProcesses(folder / "clients.log", parts_of(first)) as stage:
        finished = {method: stage.serve(run, folder / method, watch) for method, run in configs.items()}
    summary = _summarise(finished, split_sha256, time.monotonic() - started)
    _write(folder, finished, summary)
    return DemoResult(folder, summary)


def parts_of(run: RunConfig) -> int:
    """Number of clients of the simulated split."""
    assert run.split is not None
    return run.split.parts


def make_split(run: RunConfig) -> str:
    """Make the split now, so that the clients find its index in the cache. Returns its digest."""
    assert run.split is not None
    return discovery.get(run).make_split("digits", run.split)


def _summarise(finished: dict[str, Finished], split_sha256: str, duration_s: float) -> dict[str, Any]:
    target = finished["fedavg"].summary["best"]
    methods = {}
    for name, one in finished.items():
        kept = {key: one.summary[key] for key in (one.result.history.primary.name, *_KEPT)}
        pids = [client["pid"] for client in one.summary["clients"]]
        reached = one.result.history.rounds_to(target)
        methods[name] = {
            **kept,
            "rounds_to_fedavg_best": reached,
            "lr": one.result.run.train.lr,
            "client_pids": pids,
        }
    return {
        "seed": finished["fednc"].result.run.seed,
        "split_sha256": split_sha256,
        "duration_s": round(duration_s, 3),
        "methods": methods,
        "bytes_up": sum(one.summary["bytes_up"] for one in finished.values()),
        "bytes_down": sum(one.summary["bytes_down"] for one in finished.values()),
    }


def _write(folder: Path, finished: dict[str, Finished], summary: dict[str, Any]) -> None:
    results = {name: one.result for name, one in finished.items()}
    metric = results["fednc"].history.primary
    plots.curves(folder / "curves.png", {name: result.history.curve for name, result in results.items()}, metric)
    means = {}
    for name, result in results.items():
        assert result.evaluation is not None
        means[name] = result.evaluation.class_means(result.state.model)
    final = results["fednc"]
    geometry(folder / "geometry.png", means, final.frame.etf_KD, final.task.class_names)
    (folder / "fednc" / "model").rename(folder / "model")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
