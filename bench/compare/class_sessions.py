"""Comparisons whose classes arrive in sessions: costs of each session, a plain row for each run, table, pictures.

Called by `fednc compare`: `SessionCosts` while a run trains, the rest with its final rows. Does nothing for
comparisons without sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare import plots
from fednc.bench.compare.report import Compared, factor, failures, metric_of, table_head
from fednc.bench.compare.run_archive import Result
from fednc.bench.compare.styles import Look
from fednc.server.storage.events import Event, RoundCompleted, SessionOpened

COSTS = "session_costs"
_GROUPS = ("base", "novel", "newest", "harmonic")


class SessionCosts:
    """Bytes that clients send, and seconds, by stage: the base, then each session with the exchange that opens it.

    Evaluation on test data is not counted.
    """

    def __init__(self, traffic: Callable[[], tuple[int, int]]) -> None:
        """`traffic`: bytes up and down so far."""
        self._traffic = traffic
        self._sent = 0  # at the end of the stage before
        self._seconds = 0.0
        self._waits_since = time.monotonic()
        self._of_stage: list[dict[str, float]] = []

    def take(self, event: Event) -> None:
        """Note an event of the run. Call it last, so that what else is done at an event is not counted."""
        if isinstance(event, SessionOpened):
            self._seconds += time.monotonic() - self._waits_since
        if isinstance(event, RoundCompleted):
            self._seconds += event.record.seconds
            if event.record.session is not None:
                self._end_stage()
            self._waits_since = time.monotonic()

    def _end_stage(self) -> None:
        sent, _ = self._traffic()
        self._of_stage.append({"bytes_up": sent - self._sent, "seconds": round(self._seconds, 4)})
        self._sent, self._seconds = sent, 0.0

    def figures(self) -> dict[str, Any]:
        """`session_costs` of a row, by stage; {} for a run without sessions."""
        return {COSTS: self._of_stage} if self._of_stage else {}


def session_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """{method, split, seed, session_acc, mean, drop, novel, config_sha} of every run with sessions."""
    return [
        {
            "method": result["variant"],
            "split": result["setting"],
            "seed": result["seed"],
            **{key: result["summary"][key] for key in ("session_acc", "mean", "drop", "novel")},
            "config_sha": result["digest"],
        }
        for result in results
        if "session_acc" in result["summary"]
    ]


def session_table(compared: Compared, setting: str) -> Iterator[str]:
    """The lines of a table of one setting: metrics after each session, and its costs; none without sessions.

    `forgotten`: the base classes' accuracy after the base, minus that at the end. All are means over the seeds
    that did not fail; rows from before costs were counted have none.
    """
    rows = {
        f"{one.name}{failures(found)}": stages_of_rows(found)
        for one in compared.plan.variants
        if (found := compared.of(setting, one.name))
    }
    if not any(rows.values()):
        return
    metric = compared.metric.name
    columns = (metric.replace("_", " "), *_GROUPS, "kB sent", "seconds")
    yield from table_head(("variant", *columns, "forgotten"))
    for variant, runs in rows.items():
        values = [_places(runs, key) for key in (metric, *_GROUPS)]
        costs = [_places(runs, "bytes_up", 1e-3, ".0f"), _places(runs, "seconds", 1, ".2f")]
        lost = f"{100 * forgotten(runs):.1f}" if runs else "-"
        yield f"| {variant} | {' | '.join([*values, *costs])} | {lost} |"


def stages_of_rows(rows: Sequence[Result]) -> list[list[dict[str, Any]]]:
    """For each row that has sessions: by stage, its metrics and costs."""
    found = []
    for row in rows:
        stages = row["summary"].get("sessions", ())
        costs = row.get(COSTS) or [{}] * len(stages)
        found.append([{**stage, **cost} for stage, cost in zip(stages, costs, strict=True)])
    return [stages for stages in found if stages]


def forgotten(runs: Sequence[Sequence[dict[str, Any]]]) -> float:
    """The base classes' accuracy after the base minus that at the end, a share: the mean over the runs."""
    return fmean(stages[0]["base"] - stages[-1]["base"] for stages in runs)


def _places(runs: Sequence[Sequence[dict[str, Any]]], key: str, scale: float = 100, form: str = ".1f") -> str:
    """The mean over the runs, for each stage that has the figure."""
    stages = ([one[key] for one in stage if key in one] for stage in zip(*runs, strict=True))
    return " / ".join(format(scale * fmean(found), form) for found in stages if found) or "-"


def draw_sessions(results: Sequence[Result], setting: str, folder: Path, looks: Mapping[str, Look]) -> None:
    """Draw the metric after each session and the memory's mean cosine to its vertices: `<setting>-sessions.png`.

    Args:
        results: the rows.
        setting: the setting to draw.
        folder: folder of results.
        looks: style of each variant.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    metric = metric_of(results)
    curves: dict[str, list[list[tuple[int, float]]]] = {}
    cosine: dict[str, list[list[tuple[int, float]]]] = {}
    for result in results:
        if result["setting"] != setting or "sessions" not in result["summary"]:
            continue
        told = result["summary"]["sessions"]
        curves.setdefault(result["variant"], []).append(
            [(one["session"], factor(metric) * one[metric.name]) for one in told]
        )
        cosine.setdefault(result["variant"], []).append(
            [(one["session"], fmean(one["memory_cosines"].values())) for one in told if one.get("memory_cosines")]
        )
    if curves:
        panels = {
            plots.metric_label(metric, " over all classes so far"): curves,
            "memory's cosine to its vertex": cosine,
        }
        plots.bands(folder / f"{setting}-sessions.png", panels, looks, across="session")
