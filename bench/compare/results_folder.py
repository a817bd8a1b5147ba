"""Reads a folder of results without running anything: which rows of a comparison it holds, and how many it lacks.

Called by `results_page.py`. The comparison file says which rows belong to it, the rows hold the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednc.bench.compare.plan import Comparison, Row, final_rows, tuning_rows
from fednc.bench.compare.report import Compared, Rates, choose_rates
from fednc.bench.compare.run_archive import Result, read_runs
from fednc.common.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Found:
    """The part of a comparison that a folder holds.

    Attributes:
        plan: the comparison file.
        compared: the rows in the folder, without settings that lack the baseline and variants that have no row;
            None if nothing is left.
        there: how many rows of the comparison file are in the folder; tuned: those of them that tune rates.
        planned: how many rows the comparison file has; to_tune: those of them that tune rates.
        missing: how many of these the folder lacks, by setting; only settings that lack some.
        older: how many of the shown rows come from an earlier version of the file or of a method's defaults.
    """

    plan: Comparison
    compared: Compared | None
    there: int
    planned: int
    tuned: int
    to_tune: int
    missing: dict[str, int]
    older: int


def read_folder(plan: Comparison, folder: Path) -> Found:
    """Read the part of `plan` that `folder` holds.

    Raises:
        DataError: a file of results cannot be read, or two rows are the same run.
    """
    results = [*read_runs(folder).values()]
    tuning, final = ([row for row in results if row["kind"] == kind] for kind in ("tuning", "final"))
    rates = choose_rates(tuning)
    wanted = {*_digests(plan, tuning, final, rates)}
    final = [row for row in final if row["lr"] == _rate(plan, rates, row) and row["seed"] in plan.seeds]
    tuning, final = _newest(tuning, wanted), _newest(final, wanted)
    shown = [*tuning, *final]
    planned, there = _planned(plan), Counter(row["setting"] for row in shown if row["digest"] in wanted)
    return Found(
        plan=plan,
        compared=_compared(plan, tuning, final, rates),
        there=there.total(),
        planned=planned.total(),
        tuned=sum(row["digest"] in wanted for row in tuning),
        to_tune=sum(len(plan.tuning.rates) for _, variant in plan.pairs if not variant.rate_like),
        missing=dict(planned - there),
        older=sum(row["digest"] not in wanted for row in shown),
    )


def _planned(plan: Comparison) -> Counter[str]:
    """How many rows the comparison file has, by setting."""
    found: Counter[str] = Counter()
    for setting, variant in plan.pairs:
        found[setting.name] += len(plan.tuning.rates) * (not variant.rate_like) + len(plan.seeds)
    return found


def _digests(plan: Comparison, tuning: Sequence[Result], final: Sequence[Result], rates: Rates) -> Iterable[str]:
    """Digests of the rows that the comparison file asks for now, with the data and the rates that were found."""
    rows: list[Row] = []
    for data in {row["data_sha256"] for row in tuning}:
        rows += tuning_rows(plan, data)
    pairs = [(setting.name, variant.tuned_as) for setting, variant in plan.pairs]
    # Any rate will do for one that is not known, because no row in the folder can have it.
    some = {pair: rates.get(pair, plan.tuning.rates[0]) for pair in pairs}
    for data in {row["data_sha256"] for row in final}:
        rows += final_rows(plan, some, data)
    return (row.digest for row in rows)


def _rate(plan: Comparison, rates: Rates, row: Result) -> float | None:
    like = {variant.name: variant.tuned_as for variant in plan.variants}.get(row["variant"], "")
    return rates.get((row["setting"], like))


def _newest(rows: Sequence[Result], wanted: set[str]) -> list[Result]:
    """One row per run; an earlier version of a row is left out if there is a current one."""
    found: dict[tuple[object, ...], Result] = {}
    for row in sorted(rows, key=lambda row: row["digest"] in wanted):
        key = (row["setting"], row["variant"], row["seed"], row["lr"])
        if key in found and row["digest"] not in wanted:
            raise DataError(f"two older rows for {key}, and none from the current file: delete one of them")
        found[key] = row
    return list(found.values())


def _compared(plan: Comparison, tuning: list[Result], final: list[Result], rates: Rates) -> Compared | None:
    baseline = {(row["setting"], row["seed"]) for row in final if row["variant"] == plan.baseline}
    final = [row for row in final if (row["setting"], row["seed"]) in baseline]
    settings = tuple(s for s in plan.settings if s.name in {setting for setting, _ in baseline})
    variants = tuple(v for v in plan.variants if v.name in {row["variant"] for row in final})
    if not settings:
        return None
    seeds = tuple(sorted({seed for _, seed in baseline}))
    shown = plan.model_copy(update={"settings": settings, "variants": variants, "seeds": seeds})
    return Compared(plan=shown, tuning=tuning, rates=rates, final=final)
