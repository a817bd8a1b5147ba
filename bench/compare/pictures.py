"""Pictures of each setting of a comparison: the metric, geometry, rounds to target, cosines of class means.

Called by `engine.py`. Everything here follows from the rows and the comparison file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fednc.bench.compare import plots
from fednc.bench.compare.heat_maps import heat_maps
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.report import Compared, factor, worded
from fednc.bench.compare.run_archive import Result
from fednc.bench.compare.styles import Look, styles

_GEOMETRY = {"drift": "cross-client class drift", "nc1": "NC1", "nc2": "NC2", "nc3": "NC3", "nc4": "NC4"}


def looks_of(whole: Comparison) -> dict[str, Look]:
    """How each variant looks in all pictures. Those that the file wants pictured come first: they differ most."""
    return styles([*whole.pictured, *(variant.name for variant in whole.variants)])


def draw(compared: Compared, folder: Path, looks: Mapping[str, Look]) -> None:
    """Draw PNG files of each setting, and delete those of earlier ones that say nothing now.

    With sessions there is none of the metric per round, nor of rounds to a target: the metric is for other classes
    after each session.

    Args:
        compared: the rows.
        folder: folder of results.
        looks: style of each variant.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictured = compared.plan.pictured or [variant.name for variant in compared.plan.variants]
    for setting in (setting.name for setting in compared.plan.settings):
        rows = {variant: found for variant in pictured if (found := compared.of(setting, variant))}
        has_sessions = any("sessions" in row["summary"] for found in rows.values() for row in found)
        by_round = folder / f"{setting}-{compared.metric.name}.png", folder / f"{setting}-rounds.png"
        if has_sessions:
            for path in by_round:
                path.unlink(missing_ok=True)
        else:
            _draw_by_round(compared, rows, setting, by_round, looks)
        models = _by_models(rows)
        _draw_geometry(folder / f"{setting}-geometry.png", rows, models, looks, has_sessions=has_sessions)
        alignments = {" = ".join(names): _alignment(rows[names[0]]) for names in models}
        panels = {name: cosine_KK for name, cosine_KK in alignments.items() if cosine_KK is not None}
        path = folder / f"{setting}-alignment.png"
        if panels:
            heat_maps(path, panels, _class_names(compared, setting))
        else:
            path.unlink(missing_ok=True)


def _draw_by_round(
    compared: Compared,
    rows: Mapping[str, list[Result]],
    setting: str,
    paths: tuple[Path, Path],
    looks: Mapping[str, Look],
) -> None:
    """Draw the metric per round, and the rounds to the baseline's best."""
    metric = compared.metric
    curves = {name: [_curve(row, metric.name, factor(metric)) for row in found] for name, found in rows.items()}
    plots.bands(paths[0], {plots.metric_label(metric): curves}, looks)
    reached = {name: compared.rounds_to_target(setting, name) for name in rows}
    plots.bars(paths[1], reached, f"rounds to the best {worded(metric)} of {compared.plan.baseline}", looks)


def _draw_geometry(
    path: Path,
    rows: Mapping[str, list[Result]],
    models: Sequence[Sequence[str]],
    looks: Mapping[str, Look],
    *,
    has_sessions: bool,
) -> None:
    """Draw the panels in which not all values are equal, per round or after each session."""
    shown = _curve_of_sessions if has_sessions else _curve
    panels = {}
    for key, title in _GEOMETRY.items():
        lines = {" = ".join(names): [shown(row, key) for row in rows[names[0]]] for names in models}
        if len({value for found in lines.values() for points in found for _, value in points}) > 1:
            panels[title] = lines
    looks_of_models = {" = ".join(names): _look(names, looks) for names in models}
    plots.bands(path, panels, looks_of_models, across="session" if has_sessions else "round")


def _by_models(rows: Mapping[str, list[Result]]) -> list[list[str]]:
    """Names of variants; those that differ only in the read-out have the same models and stand together."""
    named: dict[tuple[str, ...], list[str]] = {}
    for variant, found in rows.items():
        models = tuple(str(row.get("training", row["digest"])) for row in found)
        named.setdefault(models, []).append(variant)
    return list(named.values())


def _look(names: Sequence[str], looks: Mapping[str, Look]) -> Look:
    """That of fednc or fedavg if it is among them, because these look the same everywhere."""
    return looks[next((name for name in ("fednc", "fedavg") if name in names), names[0])]


def _curve(row: Result, key: str, factor: float = 1) -> list[tuple[int, float]]:
    return [(one["round"], factor * one[key]) for one in row["rounds"] if one.get(key) is not None]


def _curve_of_sessions(row: Result, key: str) -> list[tuple[int, float]]:
    """After each session: variants need different numbers of rounds for one."""
    ends = {one["round"]: one["session"] for one in row["summary"].get("sessions", ())}
    return [(ends[number], value) for number, value in _curve(row, key) if number in ends]


def _alignment(rows: Sequence[Result]) -> Tensor | None:
    """[K, K], mean over the seeds that have it."""
    found = [
        [[float(value) for value in line.split()] for line in row["alignment"]]
        for row in rows
        if "alignment" in row
    ]
    return torch.tensor(found, dtype=torch.float64).nanmean(dim=0) if found else None


def _class_names(compared: Compared, setting: str) -> list[str]:
    config = next(row for row in compared.final if row["setting"] == setting)["config"]
    later = [name for session in config.get("sessions", []) for name in session["classes"]]
    return [*config["task"]["classes"], *later]
