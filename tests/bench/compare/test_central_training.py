"""Central training of a simulated split, and comparisons that run one setting at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import Comparison, final_rows, tuning_rows
from fednc.bench.compare.prepared_data import pool, prepare
from fednc.bench.compare.rows import Bench
from fednc.bench.compare.run_archive import read_runs
from fednc.cli.main import app
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part
from support.small_comparison import SMOKE, reduced

SPLIT = {"kind": "dirichlet", "parts": 3, "alpha": 0.3}
ONE = {"total": 1}
SETTINGS: list[dict[str, Any]] = [
    {"name": "plain", "run": {"split": SPLIT, "rounds": ONE}},
    {"name": "turned", "run": {"split": {**SPLIT, "shift": {"rotation_deg": 45}}, "rounds": ONE}},
]
VARIANTS: list[dict[str, Any]] = [
    {"name": "fedavg", "method": {"name": "fedavg"}},
    {"name": "central", "clients": "pooled", "method": {"name": "fedavg"}},
    {"name": "central+memory", "clients": "pooled", "method": {"name": "fedavg", "readout": "memory"}},
]


def plan(**changes: Any) -> Comparison:
    values = {"settings": SETTINGS, "variants": VARIANTS, "seeds": [1], "tuning": {"seed": 1000, "rates": [0.1]}}
    return reduced(**values | changes)


def pictures(pixel: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> list[bytes]:
    return sorted(image.tobytes() + bytes([int(one)]) for image, one in zip(pixel, label, strict=True))


@pytest.mark.parametrize("setting", ["plain", "turned"])
def test_central_training_has_the_examples_of_all_clients_as_these_have_them(setting: str, tmp_path: Path) -> None:
    one = plan().part([setting])
    data, _ = prepare(one, {}, tmp_path)
    run = next(row.run for row in tuning_rows(one, data.sha256) if row.clients)
    task = discovery.get(run)
    spec = task.packed_spec(data.path)
    parts = [task.load_train(spec, Part(index, 3), run.split) for index in range(3)]
    packed = [task.pack(part, part) for part in parts]
    of_clients = [picture for one in packed for picture in pictures(one["x_train"], one["y_train"])]
    with np.load(pool(run, data.path)) as there:
        found = pictures(there["x_train"], there["y_train"])
    assert found == sorted(of_clients)
    with np.load(data.path) as before:
        as_stored = pictures(before["x_train"], before["y_train"])
    assert len(found) == len(as_stored)
    assert (found == as_stored) == (setting == "plain")


def test_settings_run_one_at_a_time_give_the_rows_of_the_whole_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednc.bench.compare.engine.draw", lambda *_: None)
    whole = plan(variants=VARIANTS[1:], baseline="central", seeds=[1, 2])
    bench = Bench(folder=tmp_path / "parts", command="")
    parts = [compare(whole, {}, bench, settings=[name]) for name in ("turned", "plain")]
    fewer = compare(whole.model_copy(update={"seeds": whole.seeds[:1]}), {}, bench, also=whole.seeds)
    assert {row["seed"] for row in fewer.final} == {*whole.seeds[:1]}
    assert [{row["setting"] for row in part.final} for part in parts] == [{"turned"}, {"plain"}]
    rates = {(setting.name, variant.name): 0.1 for setting, variant in whole.pairs}
    tuning, final = ({row["data_sha256"] for row in rows} for rows in (parts[0].tuning, parts[0].final))
    wanted = [*tuning_rows(whole, *tuning), *final_rows(whole, rates, *final)]
    assert {row.digest for row in wanted} == {row["digest"] for row in read_runs(bench.folder).values()}
    table = (bench.folder / "table.md").read_text(encoding="utf-8")
    assert "## plain" in table
    assert "## turned" in table
    assert f"over seeds {', '.join(map(str, whole.seeds))}" in table
    assert not [row for part in parts for row in part.final if row["failed"]]
    assert all(row["shared_by"] == 2 for row in parts[0].final)


def test_a_client_that_has_all_data_is_trained_as_central_training(tmp_path: Path) -> None:
    """Two ways to the same model: a split into one part, and all of its parts at one place.

    Batches are drawn by the client's name, so each step here takes all examples.
    """
    run = {"split": {"kind": "iid", "parts": 1}, "train": {"batch": 200}}
    one = plan(settings=[{"name": "one", "run": run}], variants=VARIANTS[:2])
    compared = compare(one, {}, Bench(folder=tmp_path, command=""))
    federated, central = (compared.of("one", name)[0] for name in ("fedavg", "central"))
    assert central["trained_on"] == "pooled"
    assert len(central["rounds"]) == 2
    for one_round, other in zip(central["rounds"], federated["rounds"], strict=True):
        assert one_round == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_central_training_takes_part_in_every_round() -> None:
    few = {"total": 2, "clients_per_round": 2}
    rows = tuning_rows(plan(settings=[{"name": "few", "run": {"split": SPLIT, "rounds": few}}]), "0")
    assert {row.variant: row.run.rounds.min_clients for row in rows} == {
        "fedavg": 2,
        "central": 1,
        "central+memory": 1,
    }


def test_a_setting_that_the_file_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no setting 'upside-down'; it has plain, turned"):
        plan().part(["plain", "upside-down"])
    said = CliRunner().invoke(
        app, ["compare", str(SMOKE), "--settings", "dirichlet-7", "--results", str(tmp_path)]
    )
    assert said.exit_code == ConfigError.exit_code
    assert "it has dirichlet-0.1" in said.stderr
