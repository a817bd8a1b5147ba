"""A comparison follows the task's primary metric: an error in millimetres, where lower is better, and an AUROC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednc.bench.compare import plots, report
from fednc.bench.compare.engine import compare
from fednc.bench.compare.gains import gains
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.results_page import page
from fednc.bench.compare.rows import Bench
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from support.prototype_tasks import CLINIC, LINE, ClinicTask, LineTask, installed, write_clinic, write_line

MILLIMETRES = MetricInfo("rmse", higher_is_better=False, unit="mm")
FAILED = {"summary": {}, "rounds": []}


def plan(values: dict[str, Any], source: str, **changes: Any) -> Comparison:
    """A usual method, and one that hardly moves the model, at two learning rates of which one is far too small."""
    run = {key: values[key] for key in ("task", "frame") if key in values}
    run |= {"train": {"batch": 16, "epochs": 3}, "rounds": {"total": 3}, "split": {"kind": "iid", "parts": 2}}
    slow = {"name": "fedadam", "server_lr": 1e-6}
    variants = [{"name": "slow", "method": slow}, {"name": "usual", "method": {"name": "fedavg"}}]
    return Comparison.model_validate(
        {
            "name": "by-metric",
            "seeds": [1, 2],
            "baseline": "usual",
            "data": {"source": source},
            "tuning": {"rates": [1e-6, 0.02]},
            "run": run,
            "settings": [{"name": "two"}],
            "variants": variants,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def by_error(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Compared]:
    folder = tmp_path_factory.mktemp("error")
    with installed({"line": LineTask}):
        found = plan(LINE, write_line(folder / "line.npz", 1))
        return folder, compare(found, {}, Bench(folder=folder, command="fednc compare"))


def test_the_rate_and_the_best_round_are_those_with_the_lower_error(
    by_error: tuple[Path, report.Compared],
) -> None:
    _, compared = by_error
    assert compared.metric == MILLIMETRES
    assert compared.rates["two", "usual"] == 0.02
    tried = {row["lr"]: row["summary"]["last5"] for row in compared.tuning if row["variant"] == "usual"}
    assert tried[0.02] < tried[1e-6]
    for row in compared.of("two", "usual"):
        assert row["summary"]["best"] == min(one["rmse"] for one in row["rounds"])
    ours, other = (np.mean([row["summary"]["last5"] for row in compared.of("two", n)]) for n in ("usual", "slow"))
    assert ours < other / 2
    assert compared.rounds_to_target("two", "usual") == [3, 3]
    assert compared.rounds_to_target("two", "slow") == [None, None]
    (gain,) = gains(compared, "usual", ["slow"])
    assert gain.mean == pytest.approx(other - ours, rel=1e-6), "ahead is positive, in millimetres"
    assert gain.verdict == 1
    assert not gain.is_share


def test_the_table_and_the_picture_say_which_metric_in_which_unit(by_error: tuple[Path, report.Compared]) -> None:
    folder, compared = by_error
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "Test rmse in mm (lower is better): mean" in table
    assert "Validation rmse (last 5, mm) by learning rate" in table
    assert "accuracy" not in table
    value = np.mean([row["summary"]["last5"] for row in compared.of("two", "usual")])
    assert f"| usual | 0.02 | {value:.4g} ± " in table
    assert (folder / "two-rmse.png").is_file()
    assert not (folder / "two-accuracy.png").exists()
    assert plots.metric_label(MILLIMETRES) == "test rmse (mm)"
    assert plots.metric_label(ACCURACY) == "test accuracy (%)"


def test_the_page_of_results_has_a_section_with_the_metrics_name_and_unit(tmp_path: Path) -> None:
    """Its list of what pays is about accuracy, so such a comparison is not in it."""
    configs, results = tmp_path / "configs", tmp_path / "results"
    configs.mkdir()
    with installed({"line": LineTask}):
        source = write_line(tmp_path / "line.npz", 1)
        found = plan(LINE, source, seeds=[1], tuning={"rates": [0.02]})
        (configs / "by-metric.toml").write_text(toml(found))
        compare(found, {}, Bench(folder=results / "by-metric", command="fednc compare"))
        text = page(configs, results)
    section = text[text.index("## by-metric") :]
    assert "Test rmse in mm (lower is better), where other sections say test accuracy." in section
    assert "Validation rmse (last 5) by learning rate" in section
    assert "![two: rmse](../results/by-metric/two-rmse.png)" in section
    assert "Nothing has been measured yet." in text


def toml(found: Comparison) -> str:
    """The comparison as a file."""
    run = found.run
    return f"""
name = "{found.name}"
seeds = [1]
baseline = "usual"
data.source = "{found.data.source}"
tuning.rates = [0.02]
run.task.name = "{run["task"]["name"]}"
run.train = {{batch = 16, epochs = 3}}
run.rounds.total = 3
run.split = {{kind = "iid", parts = 2}}
settings = [{{name = "two"}}]
variants = [
  {{name = "slow", method = {{name = "fedadam", server_lr = 1e-6}}}},
  {{name = "usual", method = {{name = "fedavg"}}}},
]
"""


def test_a_comparison_by_auroc_chooses_the_higher_one(tmp_path: Path) -> None:
    with installed({"clinic": ClinicTask}):
        found = plan(CLINIC, write_clinic(tmp_path / "clinic.csv", 1), seeds=[1])
        compared = compare(found, {}, Bench(folder=tmp_path, command="fednc compare"))
    assert compared.metric.name == "auroc"
    assert compared.metric.higher_is_better
    tried = {row["lr"]: row["summary"]["last5"] for row in compared.tuning if row["variant"] == "usual"}
    assert tried[compared.rates["two", "usual"]] == max(tried.values())
    (row,) = compared.of("two", "usual")
    assert row["summary"]["best"] == max(one["auroc"] for one in row["rounds"])
    assert not [key for one in row["rounds"] for key in one if "/" in key], "values of single classes"
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Test auroc in %: mean" in table
    assert f"| usual | {compared.rates['two', 'usual']:g} | {100 * row['summary']['last5']:.1f} | " in table


def row(lr: float, last5: float | None, seed: int = 1, variant: str = "a") -> dict[str, Any]:
    summary = {"metric": MILLIMETRES.to_json(), "last5": last5, "best": last5, "rmse": last5}
    found = FAILED if last5 is None else {"summary": summary, "rounds": [{"round": 1, "rmse": last5}]}
    return {"setting": "two", "variant": variant, "lr": lr, "seed": seed, "failed": last5 is None, **found}


def test_a_run_that_fails_is_never_the_one_with_the_lowest_error() -> None:
    tuning = [row(0.3, None), row(0.1, 2.0), row(0.03, 2.0), row(0.01, 5.0)]
    assert report.choose_rates(tuning) == {("two", "a"): 0.03}
    final = [row(0.1, None, 1), row(0.1, 1.0, 2), row(0.1, 3.0, 1, "b"), row(0.1, 3.0, 2, "b")]
    found = plan(LINE, "npz:x").model_copy(update={"baseline": "a"})
    compared = report.Compared(plan=found, tuning=tuning, rates={}, final=final)
    assert report.spread(compared.of("two", "a"), compared.metric) == "failed (1 of 2 seeds)"
    assert compared.rounds_to_target("two", "b") == [None, None], "nothing reaches a run that failed"
    (gain,) = gains(compared, "a", ["b"])
    assert (gain.verdict, str(gain)) == (-1, "behind: failed")


def test_rows_from_before_there_were_several_metrics_are_read_as_accuracy() -> None:
    old = {"summary": {"accuracy": 0.5, "last5": 0.5, "best": 0.5}, "rounds": [{"round": 1, "accuracy": 0.5}]}
    assert report.metric_of([old, FAILED]) == ACCURACY
