"""`fednc compare --batched` gives the rows of clients that train one by one, and says how they trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednc.bench.compare.plan import tuning_rows
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.rows import Bench, run_rows
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
