"""Comparison files: what they may hold, what is refused as unfair, and which runs follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fednc.bench.compare.plan import final_rows, read_comparison, tuning_rows
from fednc.common.errors import ConfigError
from support.small_comparison import CONFIGS, SMOKE, reduced

LADDER = {"fedavg", "fedprox", "scaffold", "moon", "fedntd", "fedlc", "fedetf", "fednc"}


def test_the_same_run_under_two_names_is_refused() -> None:
    twins = [
        {"name": "fedavg", "method": {"name": "fedavg"}},
        {"name": "prox-0", "method": {"name": "fedprox", "proximal": 0}},
    ]
    with pytest.raises(ConfigError, match=r"'prox-0'.*is the same run as 'fedavg'"):
        tuning_rows(reduced(variants=twins), "0")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"settings": [{"name": "a", "run": {"method": {"scale": 3}}}]}, "write a variant"),
        ({"variants": [{"name": "fedavg", "method": {}, "train": {"epochs": 9}}]}, "no such key"),
        ({"seeds": [1000]}, "seed 1000 is used for tuning"),
        ({"baseline": "fedsgd"}, "'fedsgd' is not a variant"),
        ({"settings": [{"name": "a"}, {"name": "a"}]}, "two settings have the same name"),
    ],
)
def test_unfair_comparisons_are_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    values = {**reduced().model_dump(), **changes}
    path.write_text(_toml(values))
    with pytest.raises(ConfigError, match=complaint):
        read_comparison(path)


def _toml(values: dict[str, Any]) -> str:
    """Enough TOML for these files: JSON values under dotted keys, inline tables."""

    def value(one: Any) -> str:
        if isinstance(one, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in one.items()) + "}"
        if isinstance(one, list | tuple):
            return "[" + ", ".join(map(value, one)) + "]"
        return json.dumps(one)

    return "\n".join(f"{key} = {value(one)}" for key, one in values.items())


def test_tuning_may_be_shorter_but_changes_nothing_else() -> None:
    plan = reduced()
    shorter = plan.model_copy(update={"tuning": plan.tuning.model_copy(update={"rounds": 1})})
    for row, short in zip(tuning_rows(plan, "0"), tuning_rows(shorter, "0"), strict=True):
        assert short.run.rounds.total == 1 < row.run.rounds.total
        assert short.run.model_copy(update={"rounds": row.run.rounds}) == row.run
    rates = {(one.name, v.tuned_as): 0.1 for one in plan.settings for v in plan.variants}
    assert final_rows(shorter, rates, "0") == final_rows(plan, rates, "0")


def test_all_variants_of_a_setting_differ_only_in_the_method() -> None:
    plan = read_comparison(SMOKE)
    rows = final_rows(plan, {("dirichlet-0.1", name): 0.03 for name in LADDER}, "0")
    assert {row.variant for row in rows} == LADDER
    rest = [row.run.model_dump(exclude={"method"}) for row in rows if row.seed == 1]
    assert all(one == rest[0] for one in rest)
    assert {row.run.split.seed for row in rows if row.run.split} == set(plan.seeds)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_comparison_files_can_be_planned(path: Path) -> None:
    plan = read_comparison(path)
    tuning = tuning_rows(plan, "0")
    tuned = [variant for _, variant in plan.pairs if not variant.rate_like]
    assert len(tuning) == len(tuned) * len(plan.tuning.rates)
    final = final_rows(plan, {(row.setting, row.variant): 0.03 for row in tuning}, "1")
    assert len(final) == len(plan.pairs) * len(plan.seeds)
    everywhere = [variant for variant in plan.variants if not variant.settings]
    assert len(plan.pairs) >= len(plan.settings) * len(everywhere)


def test_a_variant_may_say_how_its_sessions_are_trained() -> None:
    plan = read_comparison(SMOKE.with_name("fscil-digits.toml"))
    rows = {row.variant: row.run for row in tuning_rows(plan, "0") if row.setting == "one-site"}
    own, common = rows["raw+nearest-mean"].sessions, rows["cosine-ce"].sessions
    assert [one.rounds for one in own] == [1, 1]
    assert [one.model_copy(update={"rounds": 3}) for one in own] == list(common)


@pytest.mark.parametrize("name", ["cpu-smoke.toml", "cpu-fashion.toml", "full.toml"])
def test_methods_are_compared_on_the_whole_grid(name: str) -> None:
    plan = read_comparison(SMOKE.with_name(name))
    assert plan.tuning.rates == (0.003, 0.01, 0.03, 0.1, 0.3)
    assert not any(variant.rate_like for variant in plan.variants)
    assert {variant.name for variant in plan.variants} >= LADDER
