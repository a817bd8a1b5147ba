"""What is made from the rows of a comparison: the chosen learning rates, a Markdown table, pictures.

Called by `engine.py` and for the page of results. Everything here follows from the rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from fednc.bench.compare import plots
from fednc.bench.compare.plan import Comparison, Variant
from fednc.bench.compare.run_archive import Result
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

Rates = dict[tuple[str, str], float]
_KNOWN = {"rounds", "best", "last5", "drift", "nc1", "worst_client"}
_GEOMETRY = {"drift": "cross-client class drift", "nc1": "NC1", "nc2": "NC2", "nc3": "NC3", "nc4": "NC4"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All rows of a comparison and the chosen learning rates, by (setting, variant)."""

    plan: Comparison
    tuning: list[Result]
    rates: Rates
    final: list[Result]

    def of(self, setting: str, variant: str) -> list[Result]:
        """The final rows of one variant in one setting: one per seed."""
        return [row for row in self.final if (row["setting"], row["variant"]) == (setting, variant)]

    def rounds_to_target(self, setting: str, variant: str) -> list[int | None]:
        """For each seed the first round that reaches the baseline's best value with that seed; None: never."""
        targets = {row["seed"]: _best(row) for row in self.of(setting, self.plan.baseline)}
        return [_first_round(row, targets.get(row["seed"])) for row in self.of(setting, variant)]

    @property
    def metric(self) -> MetricInfo:
        """The task's primary metric, in which all rows are judged."""
        return next(map(metric_of, self.final), ACCURACY)


def choose_rates(tuning: Sequence[Result]) -> Rates:
    """The rate with the best primary metric over the last five rounds; of two equal ones the smaller."""
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in tuning:
        score = last5(row) if metric_of(row).higher_is_better else -last5(row)
        rates.setdefault((row["setting"], row["variant"]), []).append((score, -row["lr"]))
    return {key: -max(found)[1] for key, found in rates.items()}


def report(compared: Compared, command: str) -> str:
    """The comparison as Markdown."""
    plan, one, metric = compared.plan, compared.final[0], compared.metric
    unit = f" in {metric.unit}" if metric.unit else ""
    lower = "" if metric.higher_is_better else " (lower is better)"
    lines = [
        f"# {plan.name}",
        "",
        f"`{command}`, commit {one['commit'] or 'unknown'}, {one['machine']['cpu']} ({one['device']}), "
        f"torch {one['machine']['torch']}.",
        f"Test {metric.name}{unit}{lower}: mean ± standard deviation over seeds "
        f"{', '.join(map(str, plan.seeds))}. `last 5`: mean of the last five rounds. `rounds`: rounds until the "
        f"best {metric.name} of {plan.baseline} with the same seed is reached, mean over the seeds that reach it. "
        "`s per run`: seconds of a run; training that several variants share is divided by their number. `lr`: "
        "the learning rate that is best on a validation split (below).",
        "",
    ]
    for setting in plan.settings:
        lines += [f"## {setting.name}", "", *results_table(compared, setting.name), ""]
        counted = ", ".join(filter(None, ["last 5", metric.unit]))
        lines += [f"Validation {metric.name} ({counted}) by learning rate, seed {plan.tuning.seed}:", ""]
        lines += [*tuning_table(compared, setting.name), ""]
    return "\n".join(lines)


def results_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of the table of one setting."""
    others = sorted({key for row in compared.final for key in row["summary"] if _is_figure(row, key)})
    yield from table_head(("variant", "lr", "last 5", "best", "rounds", "drift", "NC1", *others, "s per run"))
    for variant in compared.plan.variants:
        cells = _cells(compared, setting, variant, others) or ["not run", *[""] * (len(others) + 6)]
        yield f"| {variant.name} | {' | '.join(cells)} |"


def _cells(compared: Compared, setting: str, variant: Variant, others: Sequence[str]) -> list[str]:
    rows = compared.of(setting, variant.name)
    if not rows:
        return []
    return [
        f"{compared.rates[setting, variant.tuned_as]:g}",
        percent(rows),
        _spread(compared.metric, [_best(row) for row in rows]),
        _rounds(compared.rounds_to_target(setting, variant.name)),
        _mean(rows, "drift", ".4f"),
        _mean(rows, "nc1", ".2f"),
        *(_figure(rows, key) for key in others),
        f"{fmean(r['duration_s'] / r.get('shared_by', 1) for r in rows):.0f}",
    ]


def _is_figure(row: Result, key: str) -> bool:
    """Whether `key` of the summary holds figures that have no column of their own in the table."""
    value, name = row["summary"][key], metric_of(row).name
    numbers = value if isinstance(value, list) and value else [value]
    return key not in {*_KNOWN, name, f"pooled_{name}"} and all(isinstance(one, int | float) for one in numbers)


def _figure(rows: Sequence[Result], key: str) -> str:
    """The mean over the seeds; for lists, the mean of each place."""
    values = [row["summary"][key] for row in rows if row["summary"].get(key) is not None]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return " / ".join(f"{fmean(place):.4g}" for place in zip(*lists, strict=True)) or "-"


def tuning_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of the tuning table of one setting: validation metric by learning rate, the chosen one bold."""
    rates = sorted(compared.plan.tuning.rates)
    yield from table_head(("variant", *(f"{rate:g}" for rate in rates)))
    for variant in (one for one in compared.plan.variants if not one.rate_like):
        found = {
            row["lr"]: "failed" if row["failed"] else _shown(metric_of(row), last5(row))
            for row in compared.tuning
            if (row["setting"], row["variant"]) == (setting, variant.name)
        }
        chosen = compared.rates.get((setting, variant.name))
        if chosen in found:
            found[chosen] = f"**{found[chosen]}**"
        yield f"| {variant.name} | {' | '.join(found.get(rate, 'not run') for rate in rates)} |"


def table_head(names: Sequence[str]) -> Iterator[str]:
    """The first two lines of a Markdown table."""
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def percent(rows: Sequence[Result]) -> str:
    """Primary metric over the last five rounds: mean and standard deviation over the seeds; shares in per cent."""
    return _spread(metric_of(rows[0]), [last5(row) for row in rows])


def metric_of(row: Result) -> MetricInfo:
    """The primary metric of the row's task; without a name, as in older rows, accuracy."""
    return MetricInfo(**row["summary"]["metric"]) if "metric" in row["summary"] else ACCURACY


def _spread(metric: MetricInfo, values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return f"failed ({sum(map(math.isinf, values))} of {len(values)} seeds)"
    spread = f" ± {_shown(metric, stdev(values))}" if len(values) > 1 else ""
    return f"{_shown(metric, fmean(values))}{spread}"


def _shown(metric: MetricInfo, value: float) -> str:
    return f"{100 * value:.1f}" if metric.unit == PERCENT else f"{value:.4g}"


def _rounds(found: Sequence[int | None]) -> str:
    reached = [number for number in found if number is not None]
    share = "" if len(reached) == len(found) else f" ({len(reached)} of {len(found)} seeds)"
    return (f"{fmean(reached):.1f}" if reached else "-") + share


def _mean(rows: Sequence[Result], key: str, form: str) -> str:
    values = [row["summary"][key] for row in rows if row["summary"].get(key) is not None]
    return format(fmean(values), form) if values else "-"


def last5(row: Result) -> float:
    """Mean of the primary metric over the last five rounds."""
    return _value(row, "last5")


def _best(row: Result) -> float:
    return _value(row, "best")


def _value(row: Result, key: str) -> float:
    """A figure of the primary metric; for a failed run the worst there is."""
    value = row["summary"].get(key)
    return _worst(metric_of(row)) if value is None else float(value)


def _worst(metric: MetricInfo) -> float:
    if metric.higher_is_better:
        return 0.0 if metric.unit == PERCENT else -math.inf
    return math.inf


def _first_round(row: Result, target: float | None) -> int | None:
    metric = metric_of(row)
    if target is None or target == _worst(metric):
        return None  # the baseline has no row with this seed, or a failed one
    measured = [(one["round"], one[metric.name]) for one in row["rounds"] if one.get(metric.name) is not None]
    return next((number for number, value in measured if metric.reaches(value, target)), None)


def draw(compared: Compared, folder: Path) -> None:
    """Draw PNG files of each setting: metric, geometry, rounds to target, cosines of class means and vectors.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    metric = compared.metric
    pictured = compared.plan.pictured or [variant.name for variant in compared.plan.variants]
    for setting in (setting.name for setting in compared.plan.settings):
        rows = {variant: compared.of(setting, variant) for variant in pictured}
        name, unit, factor = metric.name, metric.unit and f" ({metric.unit})", 100 if metric.unit == PERCENT else 1
        curves = {variant: [_curve(row, name, factor) for row in found] for variant, found in rows.items()}
        plots.bands(folder / f"{setting}-{name}.png", {f"test {name}{unit}": curves})
        models = _by_models(rows)
        geometry = {
            title: {name: [_curve(row, key) for row in found] for name, found in models.items()}
            for key, title in _GEOMETRY.items()
        }
        if any(curve for lines in geometry.values() for curves in lines.values() for curve in curves):
            plots.bands(folder / f"{setting}-geometry.png", geometry)
        reached = {variant: compared.rounds_to_target(setting, variant) for variant in pictured}
        title = f"rounds to the best {name} of {compared.plan.baseline}"
        plots.bars(folder / f"{setting}-rounds.png", reached, title)
        panels = {name: _alignment(found) for name, found in models.items() if any(map(_aligned, found))}
        if panels:
            plots.heat_maps(folder / f"{setting}-alignment.png", panels, _class_names(compared, setting))


def _by_models(rows: Mapping[str, list[Result]]) -> dict[str, list[Result]]:
    """Rows by variant; variants that differ only in the read-out have the same models and share one name."""
    named: dict[tuple[str, ...], list[str]] = {}
    for variant, found in rows.items():
        models = tuple(str(row.get("training", row["digest"])) for row in found)
        named.setdefault(models, []).append(variant)
    return {" = ".join(names): rows[names[0]] for names in named.values()}


def _curve(row: Result, key: str, factor: float = 1) -> list[tuple[int, float]]:
    return [(one["round"], factor * one[key]) for one in row["rounds"] if one.get(key) is not None]


def _aligned(row: Result) -> bool:
    return "alignment" in row


def _alignment(rows: Sequence[Result]) -> Tensor:
    """[K, K], mean over the seeds."""
    found = [
        [[float(value) for value in line.split()] for line in row["alignment"]] for row in filter(_aligned, rows)
    ]
    return torch.tensor(found, dtype=torch.float64).nanmean(dim=0)


def _class_names(compared: Compared, setting: str) -> list[str]:
    config = next(row for row in compared.final if row["setting"] == setting)["config"]
    later = [name for session in config.get("sessions", []) for name in session["classes"]]
    return [*config["task"]["classes"], *later]
