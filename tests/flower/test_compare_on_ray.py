"""A comparison on Ray has the rows of one in this process, and says what is wrong with its cluster."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fednc.bench.compare.plan import Comparison, tuning_rows
from fednc.bench.compare.prepared_data import Prepared, prepare
from fednc.bench.compare.rows import Bench, run_rows
from fednc.bench.compare.run_archive import read_runs
from fednc.cli.main import app
from fednc.common.errors import ConfigError
from support.small_comparison import SMOKE, reduced

NOT_COMPARED = ("duration_s", "machine", "commit")


@pytest.fixture
def _ray() -> None:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed, --engine ray was not tried: pip install 'fednc[flower-sim]'")


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in NOT_COMPARED}


def small() -> Comparison:
    """Two training runs; one of them is read out in two ways."""
    variants = [
        {"name": "fedavg", "method": {"name": "fedavg"}},
        {"name": "read", "method": {"name": "fedavg", "readout": "discriminant"}},
        {"name": "fednc", "method": {"name": "fednc"}},
    ]
    return reduced(variants=variants, tuning={"rates": [0.1], "seed": 1000}, seeds=[1])


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("_ray")
def test_rows_on_ray_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = small()
    data, _ = prepare(plan, {}, tmp_path / "data")
    rows, rounds = tuning_rows(plan, data.sha256), list[int]()
    for name in ("here", "ray"):
        (tmp_path / name).mkdir()
    here = run_rows(rows, data, Bench(folder=tmp_path / "here", command="c"))
    bench = Bench(folder=tmp_path / "ray", command="c", workers=2, engine="ray")
    on_ray = run_rows(rows, data, bench, rounds.append)
    assert [figures(one) for one in on_ray] == [figures(one) for one in here]
    assert sum(rounds) == sum(row.run.all_rounds for row in rows)
    assert [figures(one) for one in read_runs(bench.folder).values()] == [
        figures(one) for one in read_runs(tmp_path / "here").values()
    ]
    monkeypatch.setitem(sys.modules, "ray", None)  # nothing is missing, so Ray is not even imported
    assert run_rows(rows, data, bench) == on_ray


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("_ray")
def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    plan = reduced()
    data = Prepared(tmp_path / "none.npz", "0")
    data.path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS = 'nonsense'.*ray start --head"):
        run_rows(tuning_rows(plan, "0"), data, Bench(folder=tmp_path, command="c", engine="ray"))


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fednc.bench.compare.on_ray.find_spec", lambda _name: None)
    told = CliRunner().invoke(app, ["compare", str(SMOKE), "--engine", "ray", "--results", str(tmp_path)])
    assert told.exit_code == 8
    assert "pip install 'fednc[flower-sim]'" in told.stderr


def test_the_files_of_prepared_data_move_together(tmp_path: Path) -> None:
    halves = tuple(Prepared(tmp_path / f"{i}.npz", str(i), {"ann": tmp_path / f"{i}-ann.npz"}) for i in range(2))
    data = Prepared(halves[0].path, "x", halves[0].clients, halves)
    moved = data.moved(tmp_path / "there")
    assert {path.name for path in moved.files} == {"0.npz", "0-ann.npz", "1.npz", "1-ann.npz"}
    assert {path.parent for path in moved.files} == {tmp_path / "there"}
    assert moved.moved(tmp_path) == data
