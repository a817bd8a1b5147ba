"""Gains over several metrics: sign rules, seed by seed; variants in some settings; a client of a split alone."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.bench import model_cost
from fednc.bench.compare import relative_gains
from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import Comparison, client_of, part_of, tuning_rows
from fednc.bench.compare.relative_gains import relative_gain
from fednc.bench.compare.rows import Bench
from fednc.common.errors import ConfigError
from fednc.common.tasks.metric_info import MetricInfo

UP, DOWN = MetricInfo("up", True), MetricInfo("down", False)
POSITIVE = st.floats(0.01, 100)

FILE = """
name = "gains"
seeds = [1]
baseline = "all"
[data]
source = "scenes:images=12,test=4,objects=2"
[tuning]
rates = [0.01]
rounds = 1
[run.task]
name = "multitask"
tasks = ["depth", "edges"]
size = [16, 16]
width = 8
channels_each = 8
[run.train]
batch = 4
[run.rounds]
total = 1
[run.split]
kind = "iid"
parts = 2
[[settings]]
name = "whole"
[[settings]]
name = "apart"
run.split.owners = [["depth"], ["edges"]]
[[variants]]
name = "all"
method.name = "fedavg"
[[variants]]
name = "depth-only"
method.name = "fedavg"
rate_like = "all"
settings = ["whole"]
task.tasks = ["edges"]
[[variants]]
name = "second"
method.name = "fedavg"
rate_like = "all"
settings = ["apart"]
clients = "client-001"
[[gains]]
name = "both"
variant = "all"
setting = "apart"
against = { depth_rmse = "second", edge_f = "second" }
[[gains]]
name = "labels"
variant = "all"
setting = "apart"
against_setting = "whole"
against = { depth_rmse = "all", edge_f = "depth-only" }
"""


def plan_of(**changes: Any) -> Comparison:
    return Comparison.model_validate({**tomllib.loads(FILE), **changes})


def test_better_is_positive_in_both_directions() -> None:
    assert relative_gain([UP], {"up": 3}, {"up": 2}) == pytest.approx(0.5)
    assert relative_gain([DOWN], {"down": 3}, {"down": 2}) == pytest.approx(-0.5)
    both = relative_gain([UP, DOWN], {"up": 3, "down": 1}, {"up": 2, "down": 2})
    assert both == pytest.approx((0.5 + 0.5) / 2)


@given(up=POSITIVE, down=POSITIVE, scale=POSITIVE)
def test_units_do_not_matter_and_no_change_is_no_gain(up: float, down: float, scale: float) -> None:
    found, than = {"up": up, "down": 1.0}, {"up": 1.0, "down": down}
    scaled = relative_gain([UP, DOWN], {"up": up, "down": scale}, {"up": 1.0, "down": scale * down})
    assert relative_gain([UP, DOWN], found, than) == pytest.approx(scaled, rel=1e-6, abs=1e-9)
    assert relative_gain([UP, DOWN], than, than) == 0


def test_a_missing_value_or_nothing_to_compare_with_gives_no_gain() -> None:
    assert math.isnan(relative_gain([UP], {}, {"up": 1}))
    assert math.isnan(relative_gain([UP, DOWN], {"up": 1, "down": 1}, {"up": 1}))
    assert math.isnan(relative_gain([UP], {"up": 1}, {"up": 0}))


def test_a_comparison_reports_gains_over_variants_with_other_primary_metrics(tmp_path: Path) -> None:
    plan = plan_of()
    compared = compare(plan, {}, Bench(folder=tmp_path, command=""))
    assert [(row["setting"], row["variant"]) for row in compared.final] == [
        ("whole", "all"),
        ("whole", "depth-only"),
        ("apart", "all"),
        ("apart", "second"),
    ]
    values = {(row["setting"], row["variant"]): row["rounds"][-1] for row in compared.final}
    ours, alone = values["apart", "all"], values["apart", "second"]
    expected = (1 - ours["depth_rmse"] / alone["depth_rmse"] + ours["edge_f"] / alone["edge_f"] - 1) / 2
    table = list(relative_gains.table(plan, compared.final))
    assert f"| both | all | apart | second | {100 * expected:+.1f} |" in table[2]
    assert table[3].startswith("| labels | all | apart | all, depth-only in whole | ")
    text = (tmp_path / "table.md").read_text()
    assert table[2] in text
    (line,) = [line for line in text.splitlines() if line.startswith("| depth-only |")]
    assert line.split("|")[3:6] == [" - "] * 3  # its primary metric is another one
    # The client of the second part has labels of edges alone, so its depth has not been trained at all.
    assert alone["depth_rmse"] > ours["depth_rmse"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"gains": [{"name": "g", "variant": "second", "setting": "whole", "against": {"edge_f": "all"}}]},
            "second",
        ),
        (
            {"gains": [{"name": "g", "variant": "all", "setting": "whole", "against": {"edge_f": "other"}}]},
            "other",
        ),
        ({"variants": [{"name": "all", "method": {}, "settings": ["nowhere"]}], "gains": []}, "nowhere"),
        ({"variants": [{"name": "all", "method": {}, "clients": "anna"}], "gains": []}, "client-000"),
    ],
)
def test_what_does_not_fit_together_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan_of(**changes)


def test_a_client_beyond_the_parts_is_refused() -> None:
    plan = plan_of(variants=[{"name": "all", "method": {"name": "fedavg"}, "clients": "client-002"}], gains=[])
    with pytest.raises(ConfigError, match="2 parts"):
        tuning_rows(plan, "")


def test_clients_of_parts_are_found_by_name() -> None:
    assert [part_of(client_of(part)) for part in (0, 7, 1234)] == [0, 7, 1234]
    assert [part_of(name) for name in ("", "client-", "client-1", "client-0001", "anna")] == [None] * 5


def test_costs_are_those_of_each_variants_model() -> None:
    lines = list(model_cost.lines(plan_of()))
    found = {
        line.split("|")[1].strip(): [float(c.replace(",", "")) for c in line.split("|")[2:5]] for line in lines[2:]
    }
    assert set(found) == {"all", "depth-only", "second"}
    assert found["all"] == found["second"]
    assert all(one < both for one, both in zip(found["depth-only"], found["all"], strict=True))
    assert found["all"][1] == pytest.approx(found["all"][0] * 4 / 1000, rel=0.01)
