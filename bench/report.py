"""What is made of the rows of a comparison: the chosen learning rates, a Markdown table, pictures.

Called by `compare.py`. Pure: everything here follows from what the results files hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fednc.bench import plots
from fednc.bench.plan import Comparison

Result = dict[str, Any]
Rates = dict[tuple[str, str], float]
_GEOMETRY = {"drift": "cross-client class drift", "nc1": "NC1", "nc2": "NC2", "nc3": "NC3", "nc4": "NC4"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All that a comparison gave; `rates` by (setting, variant)."""

    plan: Comparison
    tuning: list[Result]
    rates: Rates
    final: list[Result]

    def of(self, setting: str, variant: str) -> list[Result]:
        """The final rows of one variant in one setting, one for each seed."""
        return [row for row in self.final if (row["setting"], row["variant"]) == (setting, variant)]

    def rounds_to_target(self, setting: str, variant: str) -> list[int | None]:
        """For each seed the first round that reaches the baseline's best with that seed; None: no round does."""
        targets = {row["seed"]: _best(row) for row in self.of(setting, self.plan.baseline)}
        return [_first_round(row, targets[row["seed"]]) for row in self.of(setting, variant)]


def choose_rates(tuning: Sequence[Result]) -> Rates:
    """The rate with the best mean of the last five rounds; the smaller one of two that are equal."""
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in tuning:
        rates.setdefault((row["setting"], row["variant"]), []).append((_last5(row), -row["lr"]))
    return {key: -max(found)[1] for key, found in rates.items()}


def report(compared: Compared, command: str) -> str:
    """The comparison as Markdown."""
    plan, one = compared.plan, compared.final[0]
    lines = [
        f"# {plan.name}", "",
        f"`{command}`, commit {one['commit'] or 'unknown'}, {one['machine']['cpu']} ({one['device']}), "
        f"torch {one['machine']['torch']}.",
        f"Test accuracy in %: mean ± standard deviation over seeds {', '.join(map(str, plan.seeds))}. `last 5`: "
        f"mean of the last five rounds. `rounds`: until the best of {plan.baseline} with that seed is reached; "
        "mean over the seeds that do. The learning rate of each row is its best on a validation split "
        "(below).", "",
    ]  # fmt: skip
    for setting in plan.settings:
        lines += [f"## {setting.name}", "", *results_table(compared, setting.name), ""]
        lines += [f"Validation accuracy (last 5, %) by learning rate, seed {plan.tuning.seed}:", ""]
        lines += [*_tuning_table(compared, setting.name), ""]
    return "\n".join(lines)


def results_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of one setting's table."""
    head = ("variant", "lr", "last 5", "best", "rounds", "drift", "NC1", "s per run")
    yield from _table_head(head)
    for variant in compared.plan.variants:
        rows, rate = compared.of(setting, variant.name), compared.rates[setting, variant.tuned_as]
        cells = [
            variant.name, f"{rate:g}", _percent([_last5(row) for row in rows]),
            _percent([_best(row) for row in rows]), _rounds(compared.rounds_to_target(setting, variant.name)),
            _mean(rows, "drift", ".4f"), _mean(rows, "nc1", ".2f"), f"{fmean(r['duration_s'] for r in rows):.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _tuning_table(compared: Compared, setting: str) -> Iterator[str]:
    rates = sorted(compared.plan.tuning.rates)
    yield from _table_head(("variant", *(f"{rate:g}" for rate in rates)))
    for variant in (one for one in compared.plan.variants if not one.rate_like):
        found = {
            row["lr"]: "failed" if row["failed"] else f"{100 * _last5(row):.1f}"
            for row in compared.tuning
            if (row["setting"], row["variant"]) == (setting, variant.name)
        }
        found[compared.rates[setting, variant.name]] = f"**{found[compared.rates[setting, variant.name]]}**"
        yield f"| {variant.name} | {' | '.join(found[rate] for rate in rates)} |"


def _table_head(names: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def _percent(shares: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"


def _rounds(found: Sequence[int | None]) -> str:
    reached = [number for number in found if number is not None]
    share = "" if len(reached) == len(found) else f" ({len(reached)} of {len(found)} seeds)"
    return (f"{fmean(reached):.1f}" if reached else "-") + share


def _mean(rows: Sequence[Result], key: str, form: str) -> str:
    values = [row["summary"][key] for row in rows if row["summary"].get(key) is not None]
    return format(fmean(values), form) if values else "-"


def _last5(row: Result) -> float:
    return float(row["summary"].get("last5") or 0.0)  # a run that failed classifies nothing


def _best(row: Result) -> float:
    return float(row["summary"].get("best") or 0.0)


def _first_round(row: Result, target: float) -> int | None:
    return next((one["round"] for one in row["rounds"] if one.get("accuracy", -1) >= target > 0), None)


def draw(compared: Compared, folder: Path) -> None:
    """For each setting accuracy per round, rounds to target, and geometry per round, as PNG files in `folder`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    variants = [variant.name for variant in compared.plan.variants]
    for setting in (setting.name for setting in compared.plan.settings):
        rows = {variant: compared.of(setting, variant) for variant in variants}
        accuracy = {variant: [_curve(row, "accuracy", 100) for row in found] for variant, found in rows.items()}
        plots.bands(folder / f"{setting}-accuracy.png", {"test accuracy (%)": accuracy})
        geometry = {
            title: {variant: [_curve(row, key) for row in found] for variant, found in rows.items()}
            for key, title in _GEOMETRY.items()
        }
        plots.bands(folder / f"{setting}-geometry.png", geometry)
        reached = {variant: compared.rounds_to_target(setting, variant) for variant in variants}
        title = f"rounds until the best of {compared.plan.baseline}"
        plots.bars(folder / f"{setting}-rounds.png", reached, title)


def _curve(row: Result, key: str, factor: float = 1) -> list[tuple[int, float]]:
    return [(one["round"], factor * one[key]) for one in row["rounds"] if one.get(key) is not None]
