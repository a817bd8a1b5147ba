"""What is made from the rows of a comparison: the chosen learning rates and a Markdown table.

Called by `engine.py`, for the page of results and for pictures. Everything here follows from the rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from statistics import fmean, stdev

from fednc.bench.compare import relative_gains
from fednc.bench.compare.plan import Comparison, Variant
from fednc.bench.compare.run_archive import Result
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

Rates = dict[tuple[str, str], float]
_KNOWN = {"rounds", "metric", "best", "last5", "drift", "nc1", "worst_client"}  # and the metric's own two


@dataclass(frozen=True, kw_only=True)
class Compared:
    """All rows of a comparison and the chosen learning rates, by (setting, variant)."""

    plan: Comparison
    tuning: list[Result]
    rates: Rates
    final: list[Result]

    @property
    def metric(self) -> MetricInfo:
        """The primary metric of the task, by which everything is compared."""
        return metric_of([*self.final, *self.tuning])

    def of(self, setting: str, variant: str) -> list[Result]:
        """The final rows of one variant in one setting: one per seed."""
        return [row for row in self.final if (row["setting"], row["variant"]) == (setting, variant)]

    def rounds_to_target(self, setting: str, variant: str) -> list[int | None]:
        """For each seed the first round that reaches the baseline's best value with that seed; None: never."""
        metric = self.metric
        targets = {
            row["seed"]: best
            for row in self.of(setting, self.plan.baseline)
            if not _is_worst(best := _best(row, metric), metric)
        }
        return [_first_round(row, targets.get(row["seed"]), metric) for row in self.of(setting, variant)]


def metric_of(rows: Sequence[Result]) -> MetricInfo:
    """The primary metric of these rows' task. Rows from before there were several metrics name none: accuracy."""
    told = (row["summary"].get("metric") for row in rows)  # a run that failed has no summary
    return next((MetricInfo(**found) for found in told if found), ACCURACY)


def choose_rates(tuning: Sequence[Result]) -> Rates:
    """The rate with the best metric over the last five evaluations; of two equal ones the smaller."""
    metric = metric_of(tuning)
    sign = 1 if metric.higher_is_better else -1
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in tuning:
        rates.setdefault((row["setting"], row["variant"]), []).append((sign * last5(row, metric), -row["lr"]))
    return {key: -max(found)[1] for key, found in rates.items()}


def report(compared: Compared, command: str) -> str:
    """The comparison as Markdown."""
    plan, one, metric = compared.plan, compared.final[0], compared.metric
    lines = [
        f"# {plan.name}",
        "",
        f"`{command}`, commit {one['commit'] or 'unknown'}, {one['machine']['cpu']} ({one['device']}), "
        f"torch {one['machine']['torch']}.",
        f"{on_data('Test', metric)}: mean ± standard deviation over seeds {', '.join(map(str, plan.seeds))}. "
        "`last 5`: mean of the last five evaluations. `rounds`: rounds until the best "
        f"{worded(metric)} of {plan.baseline} with the same seed is reached, mean over the seeds that reach it. "
        "`s per run`: seconds of a run; training that several variants share is divided by their number. `lr`: "
        "the learning rate that is best on a validation split (below).",
        "",
    ]
    unit = f"last 5, {metric.unit}" if metric.unit else "last 5"
    if plan.gains:
        lines += ["## Gains over several metrics", "", *relative_gains.table(plan, compared.final), ""]
    for setting in plan.settings:
        lines += [f"## {setting.name}", "", *results_table(compared, setting.name), ""]
        lines += [f"Validation {worded(metric)} ({unit}) by learning rate, seed {plan.tuning.seed}:", ""]
        lines += [*tuning_table(compared, setting.name), ""]
    return "\n".join(lines)


def results_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of the table of one setting."""
    name = compared.metric.name
    known = {*_KNOWN, name, f"pooled_{name}"}
    others = sorted({key for row in compared.final for key in row["summary"] if _is_figure(row, key, known)})
    yield from table_head(("variant", "lr", "last 5", "best", "rounds", "drift", "NC1", *others, "s per run"))
    for variant in (one for where, one in compared.plan.pairs if where.name == setting):
        cells = _cells(compared, setting, variant, others) or ["not run", *[""] * (len(others) + 6)]
        yield f"| {variant.name} | {' | '.join(cells)} |"


def _cells(compared: Compared, setting: str, variant: Variant, others: Sequence[str]) -> list[str]:
    rows, metric = compared.of(setting, variant.name), compared.metric
    if not rows:
        return []
    # A variant that learns only some of a task's parts may have another primary metric, with a column further on.
    has_metric = metric_of(rows).name == metric.name
    own = [
        spread(rows, metric),
        _spread([_best(row, metric) for row in rows], metric),
        _rounds(compared.rounds_to_target(setting, variant.name)),
    ]
    return [
        f"{compared.rates[setting, variant.tuned_as]:g}",
        *(own if has_metric else ["-"] * len(own)),
        _mean(rows, "drift", ".4f"),
        _mean(rows, "nc1", ".2f"),
        *(_figure(rows, key) for key in others),
        f"{fmean(r['duration_s'] / r.get('shared_by', 1) for r in rows):.0f}",
    ]


def _is_figure(row: Result, key: str, known: Set[str]) -> bool:
    """Whether `key` of the summary holds figures that have no column of their own in the table."""
    value = row["summary"][key]
    numbers = value if isinstance(value, list) and value else [value]
    return key not in known and all(isinstance(one, int | float) for one in numbers)


def _figure(rows: Sequence[Result], key: str) -> str:
    """The mean over the seeds; for lists, the mean of each place."""
    values = [row["summary"][key] for row in rows if row["summary"].get(key) is not None]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return " / ".join(f"{fmean(place):.4g}" for place in zip(*lists, strict=True)) or "-"


def tuning_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of the tuning table of one setting: the metric by learning rate, the chosen one bold."""
    metric = compared.metric
    rates = sorted(compared.plan.tuning.rates)
    yield from table_head(("variant", *(f"{rate:g}" for rate in rates)))
    for variant in (one for where, one in compared.plan.pairs if where.name == setting and not one.rate_like):
        found = {
            row["lr"]: "failed" if row["failed"] else _number(last5(row, metric), metric)
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


def worded(metric: MetricInfo) -> str:
    """The name of the metric as words: `balanced accuracy`."""
    return metric.name.replace("_", " ")


def on_data(which: str, metric: MetricInfo) -> str:
    """What a figure is: `Test accuracy in %`, `Test rmse in mm (lower is better)`."""
    unit = f" in {metric.unit}" if metric.unit else ""
    return f"{which} {worded(metric)}{unit}" + ("" if metric.higher_is_better else " (lower is better)")


def factor(metric: MetricInfo) -> float:
    """By what a value is multiplied for people: shares are shown in per cent."""
    return 100 if metric.unit == PERCENT else 1


def spread(rows: Sequence[Result], metric: MetricInfo) -> str:
    """The metric over the last five evaluations, in its unit: mean and standard deviation over the seeds.

    A run that failed counts as the worst there is, and the text says how many did.
    """
    values = [last5(row, metric) for row in rows]
    return _spread(values, metric) + (failures(rows) if all(map(math.isfinite, values)) else "")


def failures(rows: Sequence[Result]) -> str:
    """How many of the runs failed, to stand behind a figure or a name; empty if none did."""
    count = sum(bool(row["failed"]) for row in rows)
    return f" ({count} of {len(rows)} seeds failed)" if count else ""


def _spread(values: Sequence[float], metric: MetricInfo) -> str:
    if not all(map(math.isfinite, values)):
        return f"failed ({sum(not math.isfinite(value) for value in values)} of {len(values)} seeds)"
    around = f" ± {_number(stdev(values), metric)}" if len(values) > 1 else ""
    return f"{_number(fmean(values), metric)}{around}"


def _number(value: float, metric: MetricInfo) -> str:
    return f"{100 * value:.1f}" if metric.unit == PERCENT else f"{value:.4g}"


def _rounds(found: Sequence[int | None]) -> str:
    reached = [number for number in found if number is not None]
    share = "" if len(reached) == len(found) else f" ({len(reached)} of {len(found)} seeds)"
    return (f"{fmean(reached):.1f}" if reached else "-") + share


def _mean(rows: Sequence[Result], key: str, form: str) -> str:
    values = [row["summary"][key] for row in rows if row["summary"].get(key) is not None]
    return format(fmean(values), form) if values else "-"


def last5(row: Result, metric: MetricInfo) -> float:
    """Mean of the metric in the last five evaluations; the worst there is for a run that failed."""
    return _figure_of(row, "last5", metric)


def _best(row: Result, metric: MetricInfo) -> float:
    return _figure_of(row, "best", metric)


def _figure_of(row: Result, key: str, metric: MetricInfo) -> float:
    value = row["summary"].get(key)
    return _worst(metric) if value is None else float(value)


def _worst(metric: MetricInfo) -> float:
    """What a failed run counts as: no example right, or infinitely far off."""
    if not metric.higher_is_better:
        return math.inf
    return 0.0 if metric.unit == PERCENT else -math.inf


def _is_worst(value: float, metric: MetricInfo) -> bool:
    return value == _worst(metric)


def _first_round(row: Result, target: float | None, metric: MetricInfo) -> int | None:
    if target is None:
        return None
    values = ((one["round"], one.get(metric.name)) for one in row["rounds"])
    return next((number for number, value in values if value is not None and metric.reaches(value, target)), None)
