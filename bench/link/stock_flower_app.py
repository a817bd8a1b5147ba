"""The ServerApp of `fednc bench link --against flower`: stock FedAvg, each round timed as ours is.

Stock Flower loads this file, so it imports only numpy and flwr. Writes its measurements to the file named in the
run configuration.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fednc.bench import probe
from fednc.bench.link import noop_app

_ALLOWED_ERROR = 1e-5  # relative to the largest value: stock FedAvg averages in float32

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, then write the measurements."""
    config = context.run_config
    clients, rounds = int(config["clients"]), int(config["rounds"])
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
        arrayrecord_key=noop_app.MODEL,
    )
    model = ArrayRecord(
        {key: Array(value) for key, value in noop_app.initial_model(int(config["params"])).items()}
    )
    round_s = []
    for server_round in range(1, rounds + 1):
        started = time.perf_counter()
        after = _one_round(server_round, strategy, model, grid, clients)
        round_s.append(time.perf_counter() - started)
        _check(model, after, noop_app.mean_delta(clients, server_round))
        model = after
    found = {"round_s": round_s, "peak_rss_mib": probe.peak_rss_mib()}
    Path(str(config["out"])).write_text(json.dumps(found), encoding="utf-8")


def _one_round(number: int, strategy: FedAvg, model: ArrayRecord, grid: Grid, clients: int) -> ArrayRecord:
    messages = strategy.configure_train(number, model, ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    after, _ = strategy.aggregate_train(number, replies)
    if after is None or len(replies) != clients or any(reply.has_error() for reply in replies):
        raise RuntimeError(f"round {number} got {len(replies)} replies")
    return after


def _check(before: ArrayRecord, after: ArrayRecord, moved: float) -> None:
    arrays = [{key: array.numpy() for key, array in record.items()} for record in (before, after)]
    error = noop_app.error(arrays[0], arrays[1], moved)
    if not error <= _ALLOWED_ERROR:
        raise RuntimeError(f"the mean is off by {error:g}")
