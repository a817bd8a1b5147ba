"""The table of docs/incremental.md says what the rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fednc.bench.compare.plan import read_comparison
from fednc.bench.compare.recipes_table import lines, table, written
from fednc.bench.compare.report import Compared

ROOT = Path(__file__).parents[3]
CONFIGS, PAGE = ROOT / "bench" / "configs", ROOT / "docs" / "incremental.md"
PLAN = read_comparison(CONFIGS / "fscil-digits.toml")


def test_the_committed_table_is_what_the_results_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page, lines(CONFIGS, ROOT / "results")), (
        "run: python -m fednc.bench.compare.recipes_table docs/incremental.md"
    )


def row(variant: str, seed: int, base: float, novel: float, costs: list[dict[str, float]]) -> dict[str, Any]:
    """Accuracy 0.9 after the base; `base` and `novel` at the end, and their mean over all classes."""
    stages = [{"accuracy": 0.9, "base": 0.9}, {"accuracy": (base + novel) / 2, "base": base, "novel": novel}]
    mean = sum(stage["accuracy"] for stage in stages) / 2
    told = {"sessions": stages, "last5": mean}
    return {
        "setting": "one-site",
        "variant": variant,
        "seed": seed,
        "failed": "",
        "summary": told,
        "session_costs": costs,
    }


def diverged(variant: str, seed: int) -> dict[str, Any]:
    there = row(variant, seed, 0.0, 0.0, [])
    return {**there, "failed": "diverged", "summary": {"metric": {"name": "accuracy", "unit": "%"}}}


COSTS = [{"bytes_up": 10**6, "seconds": 9.0}, {"bytes_up": 4200, "seconds": 0.5}]
ROWS = [
    row("system", 11, 0.8, 0.6, COSTS),
    row("system", 12, 0.7, 0.7, COSTS),
    row("system", 13, 0.0, 0.0, COSTS),  # a seed that the recipe lacks
    row("raw+cosine", 11, 0.8, 0.7, []),
    row("raw+cosine", 12, 0.8, 0.7, []),
]


def test_variants_are_shown_over_the_seeds_that_all_have() -> None:
    told = [*table([Compared(plan=PLAN, tuning=[], rates={}, final=ROWS)])]
    assert any(line.endswith("| system | 90.0 / 70.0 | 80.0 | 15.0 | 65.0 | 4.2 | 0.50 |") for line in told)
    assert any(line.endswith("| raw+cosine | 90.0 / 75.0 | 82.5 | 10.0 | 70.0 | - | - |") for line in told)
    assert told[-1].endswith("-2.5 ± 0.0 points for system against raw+cosine, the best recipe")


def test_without_rows_nothing_is_claimed_and_writing_again_changes_nothing() -> None:
    none = [*table([Compared(plan=PLAN, tuning=[], rates={}, final=[])])]
    assert none == ["Not run yet."]
    once = written(PAGE.read_text(encoding="utf-8"), none)
    assert written(once, none) == once


def test_a_run_that_failed_counts_as_classifying_nothing_correctly() -> None:
    rows = [*ROWS[:1], diverged("system", 12), *ROWS[3:]]
    told = [*table([Compared(plan=PLAN, tuning=[], rates={}, final=rows)])]
    assert any(
        "| system (1 of 2 seeds failed) | 45.0 / 35.0 | 40.0 | 10.0 | 30.0 | 4.2 |" in line for line in told
    )
    rows = [*ROWS[:2], diverged("raw+cosine", 11), diverged("raw+cosine", 12)]
    told = [*table([Compared(plan=PLAN, tuning=[], rates={}, final=rows)])]
    assert any("| raw+cosine (2 of 2 seeds failed) | 0.0 | 0.0 | - | 0.0 | - | - |" in line for line in told)
    assert "+80.0 ± 0.0 points for system against raw+cosine" in told[-1]
