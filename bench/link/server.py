"""The server process of one row of `fednc bench link`: the shipped federation, grid, strategy and aggregation.

Started by `bench/link/driver.py`. Reports its port, then one line with its measurements.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fednc.bench import probe
from fednc.bench.link import noop_app
from fednc.common import seeds
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import RunFailedError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.memory_controls import Memories
from fednc.common.process.collector import spare_what_is_loaded
from fednc.common.tasks import discovery
from fednc.common.waiting import Deadline, wait_until
from fednc.common.wire.update_codec import CODECS
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.listener import serve
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.storage.event_log import EventLog

# Of the mean, relative to the largest value: clients add up to 1/2 in float32, and codecs round that.
_LARGEST_CHANGE, _FLOAT_ERROR = 0.5, 1e-6
_POLL_S = 0.01


def main(row: dict[str, Any]) -> None:
    """Serve one row: `params`, `clients`, `rounds`, `warmup`, `codec`, `keys`."""
    run = _run_file(row)
    ports: list[int] = []

    def listening(port: int) -> None:
        ports.append(port)
        probe.tell(port=port)

    spare_what_is_loaded()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as folder:  # a disk, as for a real run
        federation = Federation("bench", run, Path(folder, "spool"), EventLog())
        measured = asyncio.run(
            serve(
                federation,
                lambda grid: measure(grid, ports[0], run, row),
                address=run.server.listen,
                on_listening=listening,
            )
        )
    probe.tell(**measured)


def _run_file(row: dict[str, Any]) -> RunConfig:
    """The defaults of a run file, for plain averaging."""
    return parse_run(
        {
            "name": "bench",
            "task": {"classes": ["one", "two"]},
            "frame": {"dim": 2},
            "method": {"name": "fedavg"},
            "rounds": {"total": row["warmup"] + row["rounds"], "min_clients": row["clients"]},
            "server": {"listen": "127.0.0.1:0", "certs": f"{row['keys']}/server" if row["keys"] else ""},
        }
    )


def measure(grid: LinkGrid, port: int, run: RunConfig, row: dict[str, Any]) -> dict[str, Any]:
    """Run all rounds and measure their cost. Raises RunFailedError if a mean is wrong."""
    strategy = _strategy(run, row["params"])
    alone_mib, started = probe.rss_mib(), time.monotonic()
    _wait_for_clients(grid, run)
    connect_s, idle_mib = time.monotonic() - started, probe.rss_mib() - alone_mib
    costs = []
    for server_round in range(1, run.rounds.total + 1):
        up, down = _traffic(grid)
        costs.append(_one_round(server_round, strategy, grid, row))
    now_up, now_down = _traffic(grid)
    return {
        "round_s": [wall_s for wall_s, _ in costs[row["warmup"] :]],
        "cpu_s": statistics.fmean(cpu_s for _, cpu_s in costs[row["warmup"] :]),
        "connect_s": connect_s,  # until all clients are ready, including the start of their processes
        "idle_mib": idle_mib,  # memory that they cost the server before any work
        "connections": probe.connections(port),
        "bytes_up": now_up - up,
        "bytes_down": now_down - down,
        "peak_rss_mib": probe.peak_rss_mib(),
    }


def _strategy(run: RunConfig, params: int) -> FrameStrategy:
    task = discovery.get(run)
    frame = draw_frame(task.label_space, run.frame.dim, seeds.derive(run.seed, "frame"))
    model = {key: torch.from_numpy(value) for key, value in noop_app.initial_model(params).items()}
    state = GlobalState(model=model, memories=Memories.all_from(ClassMemory.empty(frame.vertices, frame.dim)))
    return FrameStrategy(run, task, frame, state, EventLog())


def _wait_for_clients(grid: LinkGrid, run: RunConfig) -> None:
    if not wait_until(lambda: len(grid.ready()) >= run.rounds.min_clients, Deadline(run.rounds.wait_s), _POLL_S):
        raise RunFailedError(f"only {len(grid.ready())} of {run.rounds.min_clients} clients came")


def _one_round(
    server_round: int, strategy: FrameStrategy, grid: LinkGrid, row: dict[str, Any]
) -> tuple[float, float]:
    """Wall time and processor time of the round, without the check of its mean."""
    before = {key: value.numpy() for key, value in strategy.state.model.items()}
    started, worked = time.perf_counter(), time.process_time()
    record = strategy.run_round(server_round, grid, evaluates=False)
    took_s, worked_s = time.perf_counter() - started, time.process_time() - worked
    if record is None or record.replies != row["clients"]:
        raise RunFailedError(f"round {server_round}: {strategy.replies.failures or 'too few replies'}")
    after = {key: value.numpy() for key, value in strategy.state.model.items()}
    error = noop_app.error(before, after, noop_app.mean_delta(row["clients"], server_round))
    if not error <= _LARGEST_CHANGE * CODECS.get(row["codec"]).error + _FLOAT_ERROR:
        raise RunFailedError(f"round {server_round}: the mean is off by {error:g}")
    return took_s, worked_s


def _traffic(grid: LinkGrid) -> tuple[int, int]:
    nodes = grid.federation.roster.nodes()
    return sum(n.bytes_up for n in nodes), sum(n.bytes_down for n in nodes)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
