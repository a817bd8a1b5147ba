"""The table of docs/incremental.md: the whole system for classes in sessions, beside what works without it.

`python -m fednc.bench.compare.recipes_table docs/incremental.md` writes it between its two marks; a test compares.
Every figure follows from the rows in results/. Runs nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare.class_sessions import forgotten, stages_of_rows
from fednc.bench.compare.gains import gain_in
from fednc.bench.compare.plan import MethodPart, Setting, read_comparison
from fednc.bench.compare.report import Compared, failures, table_head
from fednc.bench.compare.results_folder import read_folder

PART = "the whole system for classes in sessions, against what a user could do without it"
BEGIN, END = "<!-- recipes: written by bench/compare/recipes_table.py -->", "<!-- end of recipes -->"
_COLUMNS = ("data", "variant", "accuracy", "mean", "forgotten", "new classes", "kB sent", "seconds")
Stages = Sequence[dict[str, Any]]


def lines(configs: Path, results: Path) -> list[str]:
    """The table of all comparisons that `results` holds."""
    plans = [read_comparison(path) for path in sorted(configs.glob("fscil-*.toml"))]
    found = (read_folder(plan, results / plan.name).compared for plan in plans)
    return [*table([one for one in found if one])]


def table(comparisons: Sequence[Compared]) -> Iterator[str]:
    """The table of the comparisons that have the part, then who is ahead of whom."""
    contests = [
        (one, setting, part)
        for one in comparisons
        for setting in one.plan.settings
        for part in one.plan.parts
        if part.name == PART and any(one.of(setting.name, name) for name in part.against)
    ]
    if not contests:
        yield "Not run yet."
        return
    yield from table_head(_COLUMNS)
    for one, setting, part in contests:
        if one.of(setting.name, part.variant):
            yield from _rows(one, setting, part)
    yield ""
    for one, setting, part in contests:
        if gain := gain_in(one, setting.name, part.variant, part.against):
            rivals = f"{part.variant} against {gain.than}, the best recipe"
            yield f"* {_place(one, setting)}: {gain} points for {rivals}"


def _place(one: Compared, setting: Setting) -> str:
    data = re.split(r" \(|, ", one.plan.title)[0]
    return f"{data}, {setting.title or setting.name}"


def _rows(one: Compared, setting: Setting, part: MethodPart) -> Iterator[str]:
    """One line for each variant, over the seeds that all of them have."""
    rows = {name: one.of(setting.name, name) for name in (part.variant, one.plan.baseline, *part.against)}
    rows = {name: mine for name, mine in rows.items() if mine}
    seeds = set.intersection(*({row["seed"] for row in mine} for mine in rows.values()))
    for name, mine in rows.items():
        shared = [row for row in mine if row["seed"] in seeds]
        figures = _figures(stages_of_rows(shared), len(shared), one.metric.name)
        yield f"| {_place(one, setting)} | {name}{failures(shared)} | {' | '.join(figures)} |"


def _figures(runs: Sequence[Stages], planned: int, metric: str) -> list[str]:
    """`planned`: runs, of which those that are not in `runs` failed. They count as classifying nothing correctly;
    what is forgotten and what it costs are means over the others.
    """
    if not runs:
        return ["0.0", "0.0", "-", "0.0", "-", "-"]
    scale = 100 * len(runs) / planned
    after = [scale * fmean(stage[metric] for stage in stages) for stages in zip(*runs, strict=True)]
    novel = scale * fmean(run[-1]["novel"] for run in runs)
    figures = [
        " / ".join(f"{value:.1f}" for value in after),
        *(f"{v:.1f}" for v in (fmean(after), 100 * forgotten(runs), novel)),
    ]
    later = [stage for run in runs for stage in run[1:]]
    if not all("seconds" in stage for stage in later):
        return [*figures, "-", "-"]
    sent, took_s = (fmean(stage[key] for stage in later) for key in ("bytes_up", "seconds"))
    return [*figures, f"{sent / 1000:.1f}", f"{took_s:.2f}"]


def written(page: str, found: Sequence[str]) -> str:
    """`page` with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", "", *found, "", f"{END}{after}"])


def main(path: Path, results: Path = Path("results")) -> None:
    """Write the table into the page."""
    found = lines(Path(__file__).parents[1] / "configs", results)
    path.write_text(written(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
