"""A comparison is judged by the primary metric of its task, in its direction and its unit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fednc.bench.compare import report
from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.rows import Bench
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part
from fednc.common.tasks.metric_info import MetricInfo
from fednc.common.tasks.tensor_data import TensorData
from support.prototype_tasks import LanesTask, LineTask, installed, write_line

MILLIMETRES = MetricInfo("rmse", higher_is_better=False, unit="mm")
SCORE = MetricInfo("r2", higher_is_better=True)


def row(metric: MetricInfo, lr: float, last5: float | None, *, variant: str = "fedavg") -> dict[str, Any]:
    """A tuning row; without a value, of a run that failed."""
    figures = {} if last5 is None else {"last5": last5, "best": last5}
    summary = {"metric": metric.to_json(), **figures}
    return {"setting": "s", "variant": variant, "lr": lr, "failed": last5 is None, "summary": summary}


@pytest.mark.parametrize(
    ("metric", "values", "chosen"),
    [
        (MILLIMETRES, {0.01: 3.0, 0.1: 1.0, 0.3: None}, 0.1),
        (SCORE, {0.01: -2.0, 0.1: -0.5, 0.3: None}, 0.1),
        (MetricInfo("accuracy", unit="%"), {0.01: 0.7, 0.1: 0.6, 0.3: None}, 0.01),
        (MILLIMETRES, {0.01: 2.0, 0.1: 2.0}, 0.01),
    ],
)
def test_the_best_rate_follows_the_direction_and_a_failed_run_is_the_worst(
    metric: MetricInfo, values: dict[float, float | None], chosen: float
) -> None:
    rates = report.choose_rates([row(metric, lr, value) for lr, value in values.items()])
    assert rates == {("s", "fedavg"): chosen}


def test_rows_without_a_named_metric_are_judged_by_accuracy() -> None:
    assert report.metric_of({"summary": {}}) == MetricInfo("accuracy", unit="%")


def test_values_have_the_unit_of_the_metric_and_failed_seeds_are_counted() -> None:
    assert report.percent([row(MILLIMETRES, 0.1, 1.5), row(MILLIMETRES, 0.1, 2.5)]) == "2 ± 0.7071"
    assert report.percent([row(MILLIMETRES, 0.1, 1.5), row(MILLIMETRES, 0.1, None)]) == "failed (1 of 2 seeds)"
    assert math.isinf(report.last5(row(SCORE, 0.1, None)))


def plan(source: str) -> Comparison:
    return Comparison.model_validate(
        {
            "name": "lines",
            "seeds": [1],
            "data": {"source": source},
            "tuning": {"seed": 9, "rates": [0.0001, 0.05]},
            "run": {
                "task": {"name": "line"},
                "train": {"batch": 16},
                "rounds": {"total": 2},
                "split": {"kind": "iid", "parts": 2},
            },
            "settings": [{"name": "iid"}],
            "variants": [
                {"name": "fedavg", "method": {"name": "fedavg"}},
                {"name": "fedprox", "method": {"name": "fedprox"}},
            ],
        }
    )


def test_a_regression_is_compared_by_its_error(tmp_path: Path) -> None:
    """Its own reader takes `npz:`, so that what the comparison prepared must come by another spec."""
    spec = write_line(tmp_path / "line.npz", seed=3)
    with installed({"line": LineTask}):
        bench = Bench(folder=tmp_path / "results", command="fednc compare", workers=1)
        compared = compare(plan("npz:{line}"), {"line": spec.removeprefix("npz:")}, bench)
    assert compared.metric == MILLIMETRES
    assert set(compared.rates.values()) == {0.05}, "the small rate learns next to nothing"
    table = (tmp_path / "results" / "table.md").read_text()
    assert "Test rmse in mm (lower is better)" in table
    assert "accuracy" not in table
    drawn = {path.name for path in (tmp_path / "results").glob("*.png")}
    assert drawn == {"iid-rmse.png", "iid-rounds.png"}, "there are no classes whose geometry could be drawn"
    for setting_row in compared.final:
        assert setting_row["summary"]["best"] == min(one["rmse"] for one in setting_row["rounds"])
    assert compared.rounds_to_target("iid", "fedavg") == [2], "the baseline reaches its own best error at the end"


def test_packed_data_are_read_again_bit_for_bit(tmp_path: Path) -> None:
    spec = write_line(tmp_path / "line.npz", seed=3)
    with installed({"line": LineTask}):
        run = plan("npz:{line}")
        _, whole = prepare(run, {"line": spec.removeprefix("npz:")}, tmp_path / "results")
        task = discovery.get(as_run(run))
        again, first = task.load_train(task.packed_spec(whole.path), None, None), task.load_train(spec, None, None)
        assert isinstance(again, TensorData)
        assert isinstance(first, TensorData)
        assert all(map(lambda a, b: a.equal(b), again.tensors, first.tensors))
        with pytest.raises(DataError, match="has no array train_0"):
            task.load_train(spec.replace("npz:", "packed:"), None, None)


def as_run(run: Comparison) -> RunConfig:
    return parse_run({**run.run, "method": {"name": "fedavg"}})


def test_a_path_under_a_name_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    with installed({"line": LineTask}), pytest.raises(ConfigError, match=r"names no \{lines\}"):
        prepare(plan("npz:line.npz"), {"lines": "elsewhere.npz"}, tmp_path)


def test_splits_of_a_task_without_classes_take_each_example_once(tmp_path: Path) -> None:
    spec = write_line(tmp_path / "line.npz", seed=3)
    with installed({"line": LineTask, "lanes": LanesTask}):
        run = as_run(plan("x"))
        task = discovery.get(run)
        parts = [task.load_train(spec, Part(index, 2), run.split) for index in range(2)]
        assert sum(part.examples for part in parts) == task.load_train(spec, None, None).examples
        assert run.split is not None
        assert len(task.make_split(spec, run.split)) == 64
