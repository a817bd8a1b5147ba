"""`fednc compare --batched` gives the rows of clients that train one by one, and says how they trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednc.bench.batched_grid import BatchedGrid
from fednc.bench.compare.plan import tuning_rows
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.rows import Bench, run_rows
from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.small_comparison import reduced


def test_rows_of_batched_clients_are_those_of_clients_one_by_one(tmp_path: Path) -> None:
    variants = [{"name": name, "method": {"name": name}} for name in ("fedavg", "fednc", "moon")]
    plan = reduced(variants=variants, tuning={"rates": [0.1], "seed": 1000}, seeds=[1])
    plan.run["split"] = {"kind": "iid", "parts": 4}
    data, _ = prepare(plan, {}, tmp_path)
    rows, found = tuning_rows(plan, data.sha256), {}
    for batched in (False, True):
        folder = tmp_path / str(batched)
        folder.mkdir()
        found[batched] = run_rows(rows, data, Bench(folder=folder, command="c", batched=batched))
    assert [row.get("trainer") for row in found[False]] == [None, None, None]
    assert [row["trainer"] for row in found[True]] == [
        "batched",
        "batched",
        "one by one: method 'moon' compares models",
    ]
    assert found[True][2]["rounds"] == found[False][2]["rounds"]
    for one, other in zip(found[False], found[True], strict=True):
        assert one["digest"] == other["digest"]
        for before, after in zip(one["rounds"], other["rounds"], strict=True):
            assert after["train_loss"] == pytest.approx(before["train_loss"], abs=1e-3)
            assert after["drift"] == pytest.approx(before["drift"], rel=0.01)
            assert after["accuracy"] == pytest.approx(before["accuracy"], abs=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_clients_that_cannot_train_together_train_as_ever(dropout: float, tmp_path: Path) -> None:
    """Dropout takes its random numbers from torch's own generator, which is seeded for each client."""
    rng = np.random.default_rng(0)
    for site in range(3):
        rows = [f"{a:.4f},{b:.4f},{'yes' if a + b > 0 else 'no'}" for a, b in rng.normal(size=(60, 2))]
        (tmp_path / f"{site}.csv").write_text("\n".join(["a,b,label", *rows]))
    task = {"name": "tabular", "classes": ["no", "yes"], "target": "label", "numeric": ["a", "b"], "model": "mlp"}
    tables = {
        "seed": 1,
        "task": {**task, "dropout": dropout},
        "frame": {"dim": 8},
        "method": {"name": "fedavg"},
        "train": {"batch": 16},
        "rounds": {"total": 2, "min_clients": 3},
    }
    alone, batched = (_model_of(grid, tables, tmp_path) for grid in (LocalGrid, BatchedGrid))
    assert alone.keys() == batched.keys()
    for key, value in alone.items():
        if dropout:
            assert torch.equal(batched[key], value), key
        else:
            torch.testing.assert_close(batched[key], value, rtol=1e-4, atol=1e-5)


def _model_of(grid: type[LocalGrid], tables: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    run = parse_run(tables)
    clients = [
        ClientConfig(name=f"c{site}", data=f"csv:{folder / str(site)}.csv", device="cpu", val_share=0)
        for site in range(3)
    ]
    with grid(run, clients) as started:
        training = FederatedRun(run, EventLog(), torch.device("cpu"))
        training.execute(started, Surroundings(name_of=started.name_of))
        assert bool(getattr(started, "alone", "")) == (grid is BatchedGrid and bool(tables["task"]["dropout"]))
        return dict(training.state.model)
