"""Gains over several metrics at once, as comparison files name them in `[[gains]]`: the multi-task gain.

(1/T) sum over T metrics of s (M - S) / S, where M is the value of the judged variant, S that of the one that it is
compared with in this metric, and s is -1 where lower is better, else 1. Both are values of the last evaluated
round: what the runs end with. Computed seed by seed from the rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev

from fednc.bench.compare.plan import Comparison, RelativeGain
from fednc.bench.compare.run_archive import Result
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.common.tasks.metric_info import MetricInfo


def relative_gain(metrics: Sequence[MetricInfo], found: Mapping[str, float], than: Mapping[str, float]) -> float:
    """The gain, a share: 0.1 is ten per cent better on average. NaN if a value is missing or there is nothing to
    compare with.
    """
    return fmean(_change(metric, found.get(metric.name), than.get(metric.name)) for metric in metrics)


def _change(metric: MetricInfo, value: float | None, than: float | None) -> float:
    if value is None or than is None or not than:
        return math.nan
    return (value - than) / than * (1 if metric.higher_is_better else -1)


def table(plan: Comparison, rows: Sequence[Result]) -> Iterator[str]:
    """A line for each gain: the mean and deviation over the seeds, then the change of each metric."""
    names = list(dict.fromkeys(name for gain in plan.gains for name in gain.against))
    yield f"| gain in % | variant | in | over | all | {' | '.join(names)} |"
    yield f"|{'---|' * (len(names) + 5)}"
    for gain in plan.gains:
        metrics = {metric.name: metric for metric in _metrics(gain, rows)}
        found = of_seeds(gain, rows, list(metrics.values()))
        each = {name: of_seeds(gain, rows, [metric]) for name, metric in metrics.items()}
        than = ", ".join(dict.fromkeys(gain.against.values())) + (
            f" in {gain.against_setting}" if gain.against_setting else ""
        )
        cells = [_shown(found), *(_shown(each.get(name, [])) for name in names)]
        yield f"| {gain.name} | {gain.variant} | {gain.setting} | {than} | {' | '.join(cells)} |"


def of_seeds(gain: RelativeGain, rows: Sequence[Result], metrics: Sequence[MetricInfo]) -> list[float]:
    """The gain for each seed that all its variants have."""
    found = _by_seed(rows, gain.setting, gain.variant)
    others = {metric.name: _by_seed(rows, gain.other_setting, gain.against[metric.name]) for metric in metrics}
    seeds = sorted(set(found).intersection(*others.values()))
    return [
        relative_gain(
            metrics,
            {metric.name: value for metric in metrics if (value := _value(found[seed], metric.name)) is not None},
            {name: value for name, each in others.items() if (value := _value(each[seed], name)) is not None},
        )
        for seed in seeds
    ]


def _metrics(gain: RelativeGain, rows: Sequence[Result]) -> list[MetricInfo]:
    """Name and direction of its metrics, as the variant's task says. Raises ConfigError: it has no such metric."""
    row = next((one for one in _of(rows, gain.setting, gain.variant)), None)
    if row is None:
        return []
    task = discovery.get(RunConfig.model_validate(row["config"]))
    there = {metric.name: metric.info for metric in task.measured_by}
    if missing := sorted(set(gain.against) - set(there)):
        raise ConfigError(f"gains: {missing[0]!r} is not a metric of task {task.name!r}: {', '.join(there)}")
    return [there[name] for name in gain.against]


def _of(rows: Sequence[Result], setting: str, variant: str) -> Iterator[Result]:
    return (row for row in rows if (row["setting"], row["variant"]) == (setting, variant))


def _by_seed(rows: Sequence[Result], setting: str, variant: str) -> dict[int, Result]:
    return {row["seed"]: row for row in _of(rows, setting, variant)}


def _value(row: Result, metric: str) -> float | None:
    """What the run ends with; None for a run that failed or does not have the metric."""
    values: list[float] = [one[metric] for one in row["rounds"] if one.get(metric) is not None]
    return values[-1] if values and not row["failed"] else None


def _shown(values: Sequence[float]) -> str:
    if not values or not all(map(math.isfinite, values)):
        return "-"
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):+.1f}{around}"
