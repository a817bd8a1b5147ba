"""docs/results.md, made from results/ alone: `make results` writes it, a test compares it with the committed page.

Numbers come from results files, words about them from stated rules (`gains.py`); nothing is typed in by hand. Runs
nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare.gains import ERRORS, OURS, POINTS, Gain, conclusions, gains, has_contest, others
from fednc.bench.compare.plan import Part, read_comparison
from fednc.bench.compare.report import Compared, results_table, table_head, tuning_table
from fednc.bench.compare.results_folder import Found, read_folder
from fednc.bench.compare.run_archive import Result

_BENCHES = ("link", "fold", "scale", "trainer")
_PICTURES = ("accuracy", "sessions", "rounds", "geometry", "alignment")
_INTRO = f"""
Written by `make results` from the files in `results/`, each of which holds its command, commit, hardware and
seeds; CI fails where this page says anything else. Accuracies are of the global model on a balanced test set, in
per cent, mean ± standard deviation over seeds. Learning rates were tuned for each method on a validation split
with a seed that no result uses. A gain is a difference of the means of the last five rounds, in points, seed by
seed. It pays in a setting where its mean over the seeds exceeds {ERRORS:g} standard errors and {POINTS:g} points,
and costs where it is as far below zero.

## What was run
"""


def page(configs: Path, results: Path) -> str:
    """The whole page.

    Args:
        configs: folder of comparison files.
        results: folder with one folder for each comparison, and `bench` for measurements of other kinds.

    Raises:
        DataError, ConfigError: a file of either cannot be used.
    """
    plans = [read_comparison(path) for path in sorted(configs.glob("*.toml"))]
    found = [read_folder(plan, results / plan.name) for plan in plans]
    shown = [(one.compared, one) for one in found if one.compared]
    lines = ["# Results", "", *conclusions([compared for compared, _ in shown])]
    measured = sorted((results / "bench").glob("*.json"))
    lines += [*_INTRO.splitlines()[1:], "", *_tiers(found), *_measured(measured)]
    for compared, one in shown:
        lines += ["", *_section(compared, one, results / one.plan.name, configs)]
    return "\n".join([*lines, *_benches(measured)]) + "\n"


def _tiers(found: Sequence[Found]) -> Iterator[str]:
    yield from table_head(("comparison", "runs there", "state"))
    for one in found:
        name, older = one.plan.name, f", {one.older} shown of an earlier version" if one.older else ""
        state = "not run" if not one.there else "complete" if one.there == one.planned else "partly run"
        yield f"| [{name}](../bench/configs/{name}.toml) | {one.there} of {one.planned}{older} | {state} |"


def _measured(paths: Sequence[Path]) -> Iterator[str]:
    for kind in _BENCHES:
        there = [path.stem for path in paths if path.stem.split("-")[0] == kind]
        yield f"| `fednc bench {kind}` | {', '.join(there) or 'none'} | {'complete' if there else 'not run'} |"


def _section(compared: Compared, found: Found, folder: Path, configs: Path) -> Iterator[str]:
    plan = compared.plan
    yield f"## {plan.name}"
    yield ""
    yield from _comment(configs / f"{plan.name}.toml")
    yield ""
    yield from _provenance(compared.final)
    if found.older:
        yield f"{found.older} of the runs are older than today's comparison file or defaults."
    if has_contest(compared):
        yield from ["", f"### {OURS} beside the best other method", "", *_contest(compared)]
    if plan.parts:
        yield from ["", "### What each part is worth", "", *_parts_table(compared)]
    for setting in plan.settings:
        yield from ["", f"### {setting.name}", "", *results_table(compared, setting.name), ""]
        yield from [f"Validation accuracy (last 5) by learning rate, seed {plan.tuning.seed}:", ""]
        yield from [*tuning_table(compared, setting.name), *_pictures(folder, setting.name)]
    of_settings = {f"{setting.name}-{kind}" for setting in found.plan.settings for kind in _PICTURES}
    for path in sorted(folder.glob("*.png")):
        if path.stem not in of_settings:
            yield from ["", f"![{path.stem}](../results/{folder.name}/{path.name})"]


def _comment(config: Path) -> Iterator[str]:
    """What the comparison file says of itself, its command as code."""
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        text = line.removeprefix("#").strip()
        yield from ["", f"    {text}"] if text.startswith("fednc ") else [text]


def _provenance(rows: Sequence[Result]) -> Iterator[str]:
    told = {
        "Commit": {row["commit"] or "unknown" for row in rows},
        "hardware": {f"{_processor(row['machine'])}, {_device(row)}" for row in rows},
        "torch": {row["machine"]["torch"] for row in rows},
        "seeds": {str(row["seed"]) for row in rows},
    }
    yield "; ".join(f"{name} {', '.join(sorted(values))}" for name, values in told.items()) + "."


def _processor(machine: dict[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores"


def _device(row: Result) -> str:
    return str(row["machine"]["gpu"] if row["device"].startswith("cuda") else row["device"])


def _contest(compared: Compared) -> Iterator[str]:
    plan = compared.plan
    baseline = plan.baseline
    yield from table_head(
        ("setting", "best other", "gain (points)", f"rounds to {baseline}'s best: {OURS}", baseline, "ratio")
    )
    for gain in gains(compared, OURS, others(plan)):
        ours, theirs = (
            [number for number in compared.rounds_to_target(gain.setting, name) if number]
            for name in (OURS, baseline)
        )
        reached = len(ours) == len(theirs) > 0
        cells = (
            [f"{fmean(ours):.1f}", f"{fmean(theirs):.1f}", f"{fmean(ours) / fmean(theirs):.2f}"]
            if reached
            else ["-"] * 3
        )
        yield f"| {gain.setting} | {gain.than} | {gain} | {' | '.join(cells)} |"


def _parts_table(compared: Compared) -> Iterator[str]:
    settings = [setting.name for setting in compared.plan.settings]
    yield from table_head(("part", "variant", "best of", *settings))
    for part in compared.plan.parts:
        found = {gain.setting: gain for gain in gains(compared, part.variant, part.against)}
        cells = [_judged(found.get(setting), part) for setting in settings]
        yield f"| {part.name} | {part.variant} | {', '.join(part.against)} | {' | '.join(cells)} |"


def _judged(gain: Gain | None, part: Part) -> str:
    if gain is None:
        return "not run"
    word = {1: "pays", 0: "no difference", -1: "costs"}[gain.verdict]
    return f"{gain}, {word}" + (f" (best: {gain.than})" if len(part.against) > 1 else "")


def _pictures(folder: Path, setting: str) -> Iterator[str]:
    for kind in _PICTURES:
        if (folder / f"{setting}-{kind}.png").exists():
            yield from ["", f"![{setting}: {kind}](../results/{folder.name}/{setting}-{kind}.png)"]


def _benches(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        told = json.loads(path.read_bytes())
        machine = told["machine"]
        yield from ["", f"## {path.stem}", "", f"    {told['command']}", ""]
        commit, memory = told["commit"] or "unknown", f"{machine['memory_gib']} GiB"
        yield f"Commit {commit}; {', '.join([_processor(machine), memory, *filter(None, [machine.get('gpu')])])}."
        yield from ["", *_plain_table(told["results"])]


def _plain_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each row; upright where there is only one, which may have many columns."""
    keys = [key for key in rows[0] if not isinstance(rows[0][key], list | dict)]
    if len(rows) == 1:
        yield from table_head(("", "value"))
        yield from (f"| {key} | {_plain(rows[0][key])} |" for key in keys)
        return
    yield from table_head(keys)
    for row in rows:
        yield f"| {' | '.join(_plain(row.get(key)) for key in keys)} |"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(Path(__file__).parents[1] / "configs", Path("results")), encoding="utf-8")
