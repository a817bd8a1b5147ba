"""`fednc demo`: one server, four client processes, fedavg and then fednc on the same split and seed.

Runs what users run: the shipped server in this process, the shipped `fednc client` as processes of their own,
gRPC between them. Writes one folder with the comparison, both models and two pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fednc.bench import plots
from fednc.common.config import RunConfig, parse_run
from fednc.common.files import write_atomically
from fednc.common.tasks.image.sources import read
from fednc.common.tasks.image.splits import split_digest, split_index
from fednc.common.tasks.image.task import ImageTask
from fednc.server.events import EventLog
from fednc.server.federation import Federation
from fednc.server.process import Finished, run_folder, run_server

METHODS = ("fedavg", "fednc")
# Chosen on a validation split of the training data with a tuning seed of its own, from the grid
# {0.003, 0.01, 0.03, 0.1, 0.3} common to both methods: results/demo-tuning.json holds the table and its command.
LEARNING_RATES = {"fedavg": 0.03, "fednc": 0.03}

Watch = Callable[[RunConfig, EventLog], contextlib.AbstractContextManager[Any]]


@dataclass
class Edge:
    """The client processes of the demo."""

    count: int
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, port: int) -> None:
        """Start the clients, once; they stay for the second run."""
        if self.processes:
            return
        for index in range(self.count):
            command = [sys.executable, "-m", "fednc.cli.main", "client", "--server", f"127.0.0.1:{port}"]
            command += [
                "--data",
                "digits",
                "--name",
                f"edge-{index}",
                "--partition",
                f"{index}/{self.count}",
                "--threads",
                "1",
                "--device",
                "cpu",
            ]
            with self.log.open("ab") as log:
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def stop(self) -> None:
        """Ask the clients to leave and see that they do."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Comparison:
    """Where the demo's files lie, and its summary."""

    folder: Path
    summary: dict[str, Any]


def demo_config(method: str, *, seed: int | None = None, runs: str = "runs") -> RunConfig:
    """The demo's run for one method."""
    values = tomllib.loads(resources.files("fednc.bench").joinpath("demo.toml").read_text())
    values["method"] = {"name": method}
    values["train"]["lr"] = LEARNING_RATES[method]
    values["server"]["runs"] = runs
    if seed is not None:
        values["seed"] = values["split"]["seed"] = seed
    return parse_run(values, source="bench/demo.toml")


def run_demo(watch: Watch, *, seed: int | None = None, runs: str = "runs") -> Comparison:
    """Both methods over real processes; the comparison and its files."""
    started = time.monotonic()
    first = demo_config(METHODS[0], seed=seed, runs=runs)
    split_sha256 = _make_split(first)
    folder = run_folder(first)
    finished: dict[str, Finished] = {}
    with _edge(folder, first) as edge:
        port = 0
        for method in METHODS:
            run = demo_config(method, seed=seed, runs=runs)
            finished[method], port = _serve(run, folder / method, port, edge, watch)
    summary = _summarise(finished, split_sha256, time.monotonic() - started)
    _write(folder, finished, summary)
    return Comparison(folder, summary)


@contextlib.contextmanager
def _edge(folder: Path, run: RunConfig) -> Iterator[Edge]:
    assert run.split is not None
    edge = Edge(run.split.parts, folder / "clients.log")
    try:
        yield edge
    finally:
        edge.stop()


def _make_split(run: RunConfig) -> str:
    """Make the split here, so that the clients find its index in the cache."""
    assert run.split is not None
    labels = read("digits", "train", ImageTask(run).options).label_N.numpy()
    return split_digest(split_index(labels, run.split))


def _serve(run: RunConfig, folder: Path, port: int, edge: Edge, watch: Watch) -> tuple[Finished, int]:
    folder.mkdir()
    events = EventLog(folder / "events.jsonl")
    if port:  # the clients of the first run come back to the same address
        run = run.model_copy(update={"server": run.server.model_copy(update={"listen": f"127.0.0.1:{port}"})})
    heard = port

    with watch(run, events) as view:

        def listening(federation: Federation, at: int) -> None:
            nonlocal heard
            heard = at
            view.watch(federation, at)
            edge.start(at)

        finished = asyncio.run(run_server(run, folder, events, on_listening=listening))
    events.close()
    logging.getLogger("fednc.server").propagate = True
    return finished, heard


def _summarise(finished: dict[str, Finished], split_sha256: str, duration_s: float) -> dict[str, Any]:
    target = finished["fedavg"].summary["best"]
    methods = {}
    for name, one in finished.items():
        kept = {key: one.summary[key] for key in ("accuracy", "best", "last5", "drift", "nc1")}
        pids = [client["pid"] for client in one.summary["clients"]]
        reached = one.result.history.rounds_to(target)
        methods[name] = {
            **kept, "rounds_to_fedavg_best": reached, "lr": one.result.run.train.lr, "client_pids": pids,
        }  # fmt: skip
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
    plots.curves(folder / "curves.png", {name: result.history.accuracies for name, result in results.items()})
    means = {}
    for name, result in results.items():
        assert result.evaluation is not None
        means[name] = result.evaluation.class_means(result.state.model)
    final = results["fednc"]
    plots.geometry(folder / "geometry.png", means, final.frame.etf_KD, final.task.class_names)
    (folder / "fednc" / "model").rename(folder / "model")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
