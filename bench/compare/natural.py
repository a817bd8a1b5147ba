"""Natural federations: what each client gets, which variant validation data chooses, and published figures.

For comparisons with `data.clients`. Called by `engine.py` and `results_page.py`. Every figure and sentence is
computed from the rows; published figures come from the comparison files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fednc.bench.compare import plots
from fednc.bench.compare.gains import OURS, alone, best_of, central, chosen, fedavg_with_our_readout, others
from fednc.bench.compare.plan import Published
from fednc.bench.compare.report import Compared, factor, last5, on_data, table_head
from fednc.bench.compare.run_archive import Result
from fednc.common.tasks.metric_info import PERCENT, MetricInfo

STANDARD_ERRORS = 2.0  # a difference to a published figure counts if it exceeds as many
MEAN = "client mean"


@dataclass(frozen=True)
class Line:
    """One line of the table: a variant of ours, a choice among several, or a published figure alone."""

    name: str
    rows: list[Result]
    published: Published | None
    note: str = ""


def is_natural(compared: Compared) -> bool:
    """Whether its clients have data of their own."""
    return bool(compared.plan.data.clients)


def client_table(compared: Compared, setting: str) -> Iterator[str]:
    """The metric on the test data of each client, all of them pooled, and the mean over the clients."""
    metric, rows = compared.metric, [row for row in compared.final if row["setting"] == setting]
    size = {name: one["examples"] for row in rows for name, one in row.get("clients", {}).items()}
    names = [name for name in compared.plan.data.clients if name in size]
    yield from table_head(("variant", *(f"{name} ({size[name]})" for name in names), "pooled", "mean"))
    for variant in compared.plan.variants:
        found = compared.of(setting, variant.name)
        of_clients = [_number(_of_client(found, name), metric) for name in names]
        pooled = _number([last5(row, metric) for row in found], metric)
        yield f"| {variant.name} | {' | '.join([*of_clients, pooled, _number(_means(found), metric)])} |"


def _of_client(rows: Sequence[Result], name: str) -> list[float]:
    values = [row.get("clients", {}).get(name, {}).get("last5") for row in rows]
    return [value for value in values if value is not None]


def _means(rows: Sequence[Result]) -> list[float]:
    return [row["summary"][MEAN] for row in rows if row["summary"].get(MEAN) is not None]


def _number(values: Sequence[float], metric: MetricInfo, *, with_spread: bool = False) -> str:
    if not values or not all(map(math.isfinite, values)):
        return "-"
    form = ".1f" if metric.unit == PERCENT else ".4g"
    around = f" ± {factor(metric) * stdev(values):{form}}" if with_spread and len(values) > 1 else ""
    return f"{factor(metric) * fmean(values):{form}}{around}"


def draw(compared: Compared, setting: str, path: Path) -> None:
    """Draw a dot for each client and variant: the mean over the seeds.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    metric = compared.metric
    pictured = compared.plan.pictured or [variant.name for variant in compared.plan.variants]
    series = {}
    for variant in pictured:
        rows = compared.of(setting, variant)
        found = {name: _of_client(rows, name) for name in compared.plan.data.clients}
        series[variant] = {name: factor(metric) * fmean(values) for name, values in found.items() if values}
    plots.dots(path, series, plots.metric_label(metric))


def overview(comparisons: Sequence[Compared]) -> Iterator[str]:
    """One table: a line for each natural federation."""
    yield from table_head(
        (
            "federation",
            OURS,
            "best other method",
            f"fedavg with {OURS}'s read-out",
            "alone",
            "at one place",
            "best published",
        )
    )
    for compared in comparisons:
        for setting in compared.plan.settings:
            what = f"[{compared.plan.title or compared.plan.name}](#{compared.plan.name})"
            yield f"| {what} | {' | '.join(_overview_cells(compared, setting.name))} |"


def _overview_cells(compared: Compared, setting: str) -> Iterator[str]:
    leading = _leading(compared, setting)
    yield _pair(leading.rows, compared.metric) if leading else "not run"
    for names, with_name in (
        (others(compared.plan), True),
        ([fedavg_with_our_readout(compared.plan)], False),
        (alone(compared.plan), False),
        (central(compared.plan), False),
    ):
        best = best_of(compared, setting, names)
        told = _pair(compared.of(setting, best), compared.metric) if best else "-"
        yield f"{told} ({best})" if best and with_name else told
    known = _federated(compared)
    if not known:
        yield "-"
        return
    sign = 1 if compared.metric.higher_is_better else -1
    top = max(known, key=lambda one: sign * one.pooled)
    yield f"{_of_two([top.pooled], [] if top.mean is None else [top.mean], compared.metric)} ({top.name})"


def _federated(compared: Compared) -> list[Published]:
    """Published figures of federated training: neither of pooled training nor of a client alone."""
    clients = {variant.name: variant.clients for variant in compared.plan.variants}
    return [one for one in compared.plan.published if not clients.get(one.beside)]


def _pair(rows: Sequence[Result], metric: MetricInfo) -> str:
    return _of_two([last5(row, metric) for row in rows], _means(rows), metric)


def _of_two(pooled: Sequence[float], means: Sequence[float], metric: MetricInfo) -> str:
    """The metric on all test examples together, a slash, and its mean over the clients."""
    return f"{_number(pooled, metric, with_spread=True)} / {_number(means, metric)}"


def table(compared: Compared, setting: str) -> Iterator[str]:
    """Fednc, then what others have published, beside our variants that do the same."""
    yield from table_head(("method", "pooled", "mean", "published: pooled", "published: mean"))
    leading = _leading(compared, setting)
    others_own = (line for line in _lines(compared, setting) if line.published)
    for line in (*filter(None, [leading]), *others_own):
        yield f"| {line.name}{line.note} | {' | '.join(_cells(line, compared.metric))} |"


def _lines(compared: Compared, setting: str) -> Iterator[Line]:
    """The choices and our variants, with published figures beside them; then published figures alone."""
    plan = compared.plan
    beside = {one.beside: one for one in plan.published if one.beside}
    for choice in plan.choices:
        name = chosen(compared, setting, choice)
        if rows := compared.of(setting, name):
            note = f" (of {len(choice.among)}, validation data chose {name})"
            yield Line(choice.name, rows, beside.get(choice.name), note)
    for variant in plan.variants:
        yield Line(variant.name, compared.of(setting, variant.name), beside.get(variant.name))
    for one in plan.published:
        if not one.beside:
            yield Line(f"{one.name} (published)", [], one)


def _cells(line: Line, metric: MetricInfo) -> list[str]:
    one = line.published
    return [
        _number([last5(row, metric) for row in line.rows], metric, with_spread=True),
        _number(_means(line.rows), metric),
        "-" if one is None else _number([one.pooled], metric),
        "-" if one is None or one.mean is None else _number([one.mean], metric),
    ]


def headline(compared: Compared, setting: str) -> Iterator[str]:
    """What fednc reaches and how far to trust that; then what the federation brings each client. Nothing if it did
    not run.
    """
    ours = _leading(compared, setting)
    if ours is None:
        return
    own, error, metric = *_reached(ours, compared.metric), compared.metric
    means = _means(ours.rows)
    mean = f" and {_number(means, metric)} as the mean over the clients" if means else ""
    has = f"{ours.name}{ours.note} has {_number([own], metric)} pooled{mean}"
    yield f"**{compared.plan.name}**: {has}; {on_data('test', metric)}{_said(ours.rows[0], error)}."
    yield from _for_each_client(compared, setting, ours)


def against_published(compared: Compared, setting: str) -> Iterator[str]:
    """Sentences: fednc against each published figure."""
    ours = _leading(compared, setting)
    if ours is not None:
        own, error = _reached(ours, compared.metric)
        for one in compared.plan.published:
            yield _against(own, one, _means(ours.rows), error, compared.metric)


def _reached(ours: Line, metric: MetricInfo) -> tuple[float, float]:
    """(The metric on all test examples, mean over the seeds; the standard error of the test data.)"""
    own = fmean(last5(row, metric) for row in ours.rows)
    return own, _test_error(ours.rows[0], own, metric)


def _leading(compared: Compared, setting: str) -> Line | None:
    """The line of fednc: the first choice, or the variant of this name."""
    lines = [line for line in _lines(compared, setting) if line.rows]
    wanted = {*(choice.name for choice in compared.plan.choices[:1])} or {OURS}
    return next((line for line in lines if line.name in wanted), None)


def _test_error(row: Result, value: float, metric: MetricInfo) -> float:
    """Standard error of a share over the test examples; 0 for other metrics, for which the rows do not say it."""
    count = _examples(row)
    return math.sqrt(value * (1 - value) / count) if metric.unit == PERCENT and count else 0.0


def _examples(row: Result) -> int:
    return sum(one["examples"] for one in row.get("clients", {}).values())


def _said(row: Result, error: float) -> str:
    return f", {_examples(row)} test examples, so a standard error of {100 * error:.1f} points" if error else ""


def _against(own: float, one: Published, means: Sequence[float], error: float, metric: MetricInfo) -> str:
    sign = 1 if metric.higher_is_better else -1
    ahead = sign * (own - one.pooled)
    clear = abs(ahead) > STANDARD_ERRORS * error
    word, published = "Above" if ahead >= 0 else "Below", _number([one.pooled], metric)
    told = f"{word} {one.name} as published ({published}) by {_points(abs(ahead), metric)}"
    if one.mean is not None and means:
        by = sign * (fmean(means) - one.mean)
        told += (
            f", as the mean over the clients {'above' if by >= 0 else 'below'} it by {_points(abs(by), metric)}"
        )
    return told + ("." if clear else "; pooled, the test data is too small to call it a difference.")


def _points(value: float, metric: MetricInfo) -> str:
    return f"{100 * value:.1f} points" if metric.unit == PERCENT else f"{value:.4g} {metric.unit}".strip()


def _signed(value: float, metric: MetricInfo) -> str:
    return f"{'+' if value >= 0 else '-'}{_points(abs(value), metric)}"


def _for_each_client(compared: Compared, setting: str, ours: Line) -> Iterator[str]:
    """How many clients have a better metric from the federation than from a model of their own."""
    metric = compared.metric
    rows = [row for name in alone(compared.plan)[:1] for row in compared.of(setting, name)]
    gains = []
    for name in compared.plan.data.clients:
        federated, own = _of_client(ours.rows, name), _of_client(rows, name)
        if federated and own:
            gains.append((fmean(federated) - fmean(own)) * (1 if metric.higher_is_better else -1))
    if gains:
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        yield (
            f"Of {len(gains)} clients {better} have a better model than one that they train alone, and {worse} "
            f"a worse one; the mean gain is {_signed(fmean(gains), metric)}."
        )
