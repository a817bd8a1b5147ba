"""Comparisons whose classes arrive in sessions: one plain row for each run, and pictures of its sessions.

Called by `fednc compare` with its final rows; does nothing for comparisons without sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare import plots
from fednc.bench.compare.report import factor, metric_of
from fednc.bench.compare.run_archive import Result


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


def draw_sessions(results: Sequence[Result], setting: str, folder: Path) -> None:
    """Draw the metric after each session and the memory's mean cosine to its vertices: `<setting>-sessions.png`.

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
        plots.bands(folder / f"{setting}-sessions.png", panels, across="session")
