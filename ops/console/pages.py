"""Fills the templates: Jinja with autoescape, and the filters that turn numbers into text.

Called by `routes.py`. Everything that a template prints is escaped, whoever said it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fednc.common.tasks.metric_info import PERCENT, MetricInfo
from fednc.ops.console import charts
from fednc.ops.console.run_view import RUN_LOOKS
from fednc.ops.pipelines.journal import StepState
from fednc.ops.pipelines.picture import shown_state
from fednc.ops.run_folders.folder import RunFolder
from fednc.ops.search.objectives import MAXIMIZE
from fednc.ops.search.study import SearchView, TrialView

# How the states of a pipeline's steps look; `interrupted` is what the picture of a pipeline says, too.
STEP_LOOKS = {
    StepState.PENDING: "quiet",
    StepState.RUNNING: "busy",
    StepState.ASKING: "warn",
    StepState.DONE: "good",
    StepState.CACHED: "good",
    StepState.SKIPPED: "quiet",
    StepState.REJECTED: "bad",
    StepState.REPLACED: "quiet",
    StepState.FAILED: "bad",
}
TRIAL_LOOKS = {"complete": "good", "running": "busy", "pruned": "quiet", "failed": "bad", "waiting": "quiet"}
_MOST_TRIALS = 60
_NOTHING = "–"


@cache
def environment() -> Environment:
    """The templates of this folder."""
    made = Environment(
        loader=PackageLoader("fednc.ops.console", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "bytes": bytes_text,
        "duration": duration,
        "ago": ago,
        "clock": clock,
        "count": count,
        "short": short,
        "number": lambda value: shown(value, "{:.3g}"),
        "cosine_row": lambda place: (place.name, place.own, place.other, place.nearest),
        "moment": lambda text: clock(datetime.fromisoformat(text).timestamp()),
    }
    made.globals |= {
        "compared_lines": compared_lines,
        "ranked": ranked,
        "trial_lines": trial_lines,
        "trial_looks": TRIAL_LOOKS,
        "line_css": line_css,
        "run_looks": RUN_LOOKS,
        "step_looks": STEP_LOOKS,
        "facts": facts,
        "shown_state": shown_state,
        "charts": charts,
        "isfinite": math.isfinite,
        "query": lambda **values: urlencode(
            {key: value for key, value in values.items() if value not in ("", None)}
        ),
        "metric": metric_text,
        "most": lambda info: 1.0 if info.unit == PERCENT else math.inf,
        "show_metric": lambda info: lambda value: metric_text(value, info),
        "show_number": lambda value: shown(value, "{:.3g}"),
        "show_seconds": duration,
    }
    return made


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A template as HTML."""
    return environment().get_template(template).render(values)


def compared_lines(runs: Mapping[str, RunFolder]) -> list[charts.ChartLine]:
    """The curve of each run, by its label."""
    return [charts.ChartLine(name, run.history.curve, line_css(i)) for i, (name, run) in enumerate(runs.items())]


def facts(values: Mapping[str, Any], most: int = 40) -> list[tuple[str, str]]:
    """JSON values as rows, for a person: lists in one line, tables with their keys."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{key} · {name}", text) for name, text in facts(value)]
        elif isinstance(value, list):
            more = f" and {len(value) - 20} more" if len(value) > 20 else ""
            rows.append((key, ", ".join(map(str, value[:20])) + more or _NOTHING))
        elif isinstance(value, float):
            rows.append((key, f"{value:.5g}"))
        else:
            rows.append((key, _NOTHING if value in (None, "") else str(value)))
    return rows[:most]


def trial_lines(view: SearchView) -> list[charts.ChartLine]:
    """The curve of each trial, the best ones last and so on top."""
    drawn = [trial for trial in view.trials if trial.curve][-_MOST_TRIALS:]
    drawn.sort(key=lambda trial: trial.number in view.best)
    css = {True: "a", False: "faded"}
    return [
        charts.ChartLine(f"trial {trial.number}", sorted(trial.curve.items()), css[trial.number in view.best])
        for trial in drawn
    ]


def ranked(view: SearchView) -> list[TrialView]:
    """The best trials, then those that go on, then the others by their first objective."""
    direction = next(iter(view.objectives.values()), MAXIMIZE)
    sign = -1 if direction == MAXIMIZE else 1

    def place(trial: TrialView) -> tuple[float, ...]:
        value = next(iter(trial.values.values()), math.inf * sign)
        order = {"running": 1, "complete": 2, "waiting": 3}.get(trial.state, 4)
        return (0 if trial.number in view.best else order), sign * value, -trial.number

    return sorted(view.trials, key=place)[:_MOST_TRIALS]


def line_css(place: int) -> str:
    """Class of the line at this place of a list."""
    return f"s{place % 6}"


def shown(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return form.format(value) if value is not None and math.isfinite(value) else _NOTHING


def metric_text(value: float | None, info: MetricInfo) -> str:
    """A metric's value in its unit, or a dash."""
    return info.show(value) if value is not None and math.isfinite(value) else _NOTHING


def bytes_text(value: float | None) -> str:
    """`1.2 MB`."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """`0.3 s`, `12 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return _NOTHING
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def ago(at: float | None) -> str:
    """How long ago a time of the wall clock was."""
    if at is None or not math.isfinite(at):
        return _NOTHING
    passed = max(0.0, time.time() - at)
    return "now" if passed < 2 else f"{duration(passed)} ago"


def clock(at: float | None) -> str:
    """`14:03:22`, with the day if it is not today. In the console's time zone."""
    if at is None or not math.isfinite(at):
        return _NOTHING
    when = datetime.fromtimestamp(at, UTC).astimezone()
    return when.strftime("%H:%M:%S" if when.date() == datetime.now().astimezone().date() else "%d %b %H:%M")


def count(value: float | None) -> str:
    """`1,291`."""
    return shown(value, "{:,.0f}")


def short(text: object, most: int = 40) -> str:
    """The beginning of a long text."""
    full = str(text)
    return full if len(full) <= most else f"{full[: most - 1]}…"
