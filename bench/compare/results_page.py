"""docs/results.md, made from results/ alone: `make results` writes it, a test compares it with the committed page.

Figures come from the rows, verdicts from stated rules (`findings.py`, `gains.py`), explanations of words from
`terms.py`. Runs nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare import natural, relative_gains
from fednc.bench.compare.findings import conclusions, overview, paragraph, rules
from fednc.bench.compare.gains import OURS, Gain, gains, others, ours
from fednc.bench.compare.plan import MethodPart, Variant, read_comparison
from fednc.bench.compare.report import Compared, on_data, results_table, table_head, tuning_table, worded
from fednc.bench.compare.results_folder import Found, read_folder
from fednc.bench.compare.run_archive import Result
from fednc.bench.compare.terms import COLUMNS, METHODS, PICTURES, SPEED, TERMS, explained
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

_BENCHES = ("link", "fold", "scale", "trainer")
_OF_A_SETTING = [kind for kind in PICTURES if kind != "initialisation"]
_CAPTION = """
Test accuracy of the global model in per cent, mean of the last five rounds; then mean ± standard deviation over
the seeds. Test sets are balanced, except those of natural federations. The best other method is the best of
those that were run in that setting. The last column shows how much of the lead comes from the read-out alone.
[How to read this page](#how-to-read-this-page) explains every word.
"""
_NATURAL = """
Clients that differ because they are different hospitals, domains or people. Each trains and is tested on data of
its own. Pooled: on all test examples together; mean: the mean over the clients. `pooled` is one model of all
training data at one place, which a federation wants to reach without moving the data; `alone` gives each client
a model of its own.
"""
_CHOSEN = """
Learning rates, and the choice among several variants, follow validation data held out of training. A difference
to a published figure is called one if it exceeds two standard errors of our test data.
"""
_SOURCE = """
`make results` writes this page from `results/`, and a test fails if it says anything else. Each comparison has a
folder there with its rows (`runs.jsonl.gz`), a table and pictures; a row holds its configuration, command, commit
and hardware. Learning rates were chosen per method and setting on validation data, with a seed that no result
uses.
[compare.md](compare.md) says how to run a comparison.
"""


def page(configs: Path, results: Path) -> str:
    """The whole page.

    Args:
        configs: folder of comparison files.
        results: folder with one folder for each comparison, and `bench` for measurements of speed.

    Raises:
        DataError, ConfigError: a file of either cannot be used.
    """
    plans = [read_comparison(path) for path in sorted(configs.glob("*.toml"))]
    found = [read_folder(plan, results / plan.name) for plan in plans]
    shown = [(one.compared, one) for one in found if one.compared]
    # The table and the list at the top are about accuracy; a comparison by another metric has its section alone.
    comparisons = [compared for compared, _ in shown if compared.metric == ACCURACY]
    measured = sorted((results / "bench").glob("*.json"))
    lines = ["# Results", "", *overview(comparisons), "", *paragraph(_CAPTION.strip()), ""]
    lines += ["## What pays and what does not", "", *paragraph(rules()), "", *conclusions(comparisons)]
    lines += _natural([compared for compared, _ in shown if natural.is_natural(compared)])
    lines += ["## How to read this page", "", *paragraph(_SOURCE.strip()), *_words(), ""]
    lines += ["## What was run", "", *_state(found), *_measured(measured)]
    for compared, one in shown:
        lines += ["", *_section(compared, one, results / one.plan.name, configs)]
    return "\n".join([*lines, *_speed(measured)]) + "\n"


def _natural(comparisons: Sequence[Compared]) -> Iterator[str]:
    """The section on clients with data of their own; nothing if there are none."""
    if not comparisons:
        return
    yield from [
        "## Natural federations",
        "",
        *paragraph(_NATURAL.strip()),
        "",
        *paragraph(_CHOSEN.strip()),
        "",
        *natural.section(comparisons),
        "",
    ]
    for compared in comparisons:
        said = list(natural.verdicts(compared))
        for line in said:
            yield from paragraph(line.removeprefix("* "), "* " if line.startswith("* ") else "")
        yield from [""] if said else []
    yield from paragraph(
        "Published figures: "
        + "; ".join(f"{one.plan.name}: {one.plan.published_by}" for one in comparisons if one.plan.published_by)
        + "."
    )
    yield ""


def _words() -> Iterator[str]:
    for kind, terms in (("word", TERMS), ("method", METHODS), ("column", COLUMNS), ("picture", PICTURES)):
        yield from ["", *explained(kind, terms)]


def _state(found: Sequence[Found]) -> Iterator[str]:
    yield from table_head(("comparison", "runs done", "state"))
    for one in found:
        name, older = one.plan.name, f", {one.older} of an earlier version" if one.older else ""
        state = "not run" if not one.there else "complete" if one.there == one.planned else "partly run"
        yield f"| [{name}](../bench/configs/{name}.toml) | {one.there} of {one.planned}{older} | {state} |"


def _measured(paths: Sequence[Path]) -> Iterator[str]:
    for kind in _BENCHES:
        there = [path.stem for path in paths if path.stem.split("-")[0] == kind]
        yield f"| `fednc bench {kind}` | {', '.join(there) or 'none'} | {'complete' if there else 'not run'} |"


def _section(compared: Compared, found: Found, folder: Path, configs: Path) -> Iterator[str]:
    plan = compared.plan
    yield from [f"## {plan.name}", "", *_comment(configs / f"{plan.name}.toml"), "", *_provenance(compared.final)]
    if found.older:
        yield from ["", f"{found.older} of the runs are older than today's comparison file or defaults."]
    if ours(plan) and others(plan):
        yield from ["", f"### {OURS} against the best other method", "", *_contest(compared)]
    if plan.parts:
        yield from ["", "### What each part is worth", "", *_parts_table(compared)]
    if plan.gains:
        yield from ["", "### Gains over several metrics", "", *relative_gains.table(plan, compared.final)]
    yield from ["", "### Variants", "", *_variants(plan.variants, plan.run)]
    metric = compared.metric
    if metric != ACCURACY:
        yield from ["", *paragraph(f"{on_data('Test', metric)}, where other sections say test accuracy.")]
    for setting in plan.settings:
        yield from ["", f"### {setting.name}: {setting.title}" if setting.title else f"### {setting.name}", ""]
        yield from [*results_table(compared, setting.name), ""]
        if natural.is_natural(compared):
            yield from [f"{on_data('Test', metric)} of each client (test examples), mean over the seeds:", ""]
            yield from [*natural.client_table(compared, setting.name), ""]
        yield from [f"Validation {worded(metric)} (last 5) by learning rate, seed {plan.tuning.seed}:", ""]
        yield from [*tuning_table(compared, setting.name), *_pictures(folder, setting.name, metric)]
    of_settings = {f"{setting.name}-{kind}" for setting in found.plan.settings for kind in _kinds(metric)}
    for path in sorted(folder.glob("*.png")):
        if path.stem not in of_settings:
            yield from ["", f"![{path.stem}](../results/{folder.name}/{path.name})"]


def _comment(config: Path) -> Iterator[str]:
    """What the comparison file says about itself, its command as code."""
    for line in config.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        text = line.removeprefix("#").strip()
        yield from ["", f"    {text}"] if text.startswith("fednc ") else [text]


def _provenance(rows: Sequence[Result]) -> list[str]:
    told = {
        "Commit": {row["commit"] or "unknown" for row in rows},
        "hardware": {_processor(row["machine"], _device(row)) for row in rows},
        "torch": {row["machine"]["torch"] for row in rows},
        "seeds": {str(row["seed"]) for row in rows},
    }
    return paragraph("; ".join(f"{name} {', '.join(sorted(values))}" for name, values in told.items()) + ".")


def _processor(machine: dict[str, Any], *more: str) -> str:
    cores = f"{machine['cores']} cores"
    return f"{machine['cpu']} ({', '.join([cores, *more])})"


def _device(row: Result) -> str:
    return str(row["machine"]["gpu"] if row["device"].startswith("cuda") else row["device"])


def _contest(compared: Compared) -> Iterator[str]:
    plan = compared.plan
    baseline = plan.baseline
    unit = "points" if compared.metric.unit == PERCENT else compared.metric.unit or worded(compared.metric)
    yield from table_head(
        ("setting", "best other", f"gain ({unit})", f"rounds: {OURS}", f"rounds: {baseline}", "ratio")
    )
    for gain in gains(compared, ours(plan), others(plan)):
        own, theirs = (
            [number for number in compared.rounds_to_target(gain.setting, name) if number]
            for name in (ours(plan), baseline)
        )
        reached = len(own) == len(theirs) > 0
        cells = (
            [f"{fmean(own):.1f}", f"{fmean(theirs):.1f}", f"{fmean(own) / fmean(theirs):.2f}"]
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


def _judged(gain: Gain | None, part: MethodPart) -> str:
    if gain is None:
        return "not run"
    word = {1: "pays", 0: "no clear difference", -1: "costs"}[gain.verdict]
    return f"{gain}, {word}" + (f" (best: {gain.than})" if len(part.against) > 1 else "")


def _variants(variants: Sequence[Variant], run: Mapping[str, Any]) -> Iterator[str]:
    yield from table_head(("variant", "keys"))
    common = {"method": run.get("method", {})}
    for variant in variants:
        tables = {"method": {**common["method"], **variant.method}, "frame": variant.frame, "init": variant.init}
        tables |= {"task": variant.task}
        keys = [
            f"`{table}.{key} = {json.dumps(value)}`" for table, v in tables.items() for key, value in v.items()
        ]
        yield f"| {variant.name} | {', '.join(keys)} |"


def _kinds(metric: MetricInfo) -> list[str]:
    """Pictures of a setting, by the ends of their names; that of the metric is called after it."""
    return [metric.name if kind == ACCURACY.name else kind for kind in _OF_A_SETTING]


def _pictures(folder: Path, setting: str, metric: MetricInfo) -> Iterator[str]:
    for kind in _kinds(metric):
        if (folder / f"{setting}-{kind}.png").exists():
            yield from ["", f"![{setting}: {kind}](../results/{folder.name}/{setting}-{kind}.png)"]


def _speed(paths: Sequence[Path]) -> Iterator[str]:
    if paths:
        yield from [
            "",
            "## Speed",
            "",
            "What `fednc bench` measured, one file of `results/bench/` after the other.",
            "",
        ]
        yield from explained("column", SPEED)
    for path in paths:
        told = json.loads(path.read_bytes())
        machine = told["machine"]
        yield from ["", f"### {path.stem}", "", f"    {told['command']}", ""]
        more = [f"{machine['memory_gib']} GiB", *filter(None, [machine.get("gpu")])]
        yield f"Commit {told['commit'] or 'unknown'}; hardware {_processor(machine, *more)}."
        yield from ["", *_plain_table(told["results"])]


def _plain_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each row; a single row, which may have many columns, is shown one column per line."""
    keys = [key for key in rows[0] if not isinstance(rows[0][key], list | dict)]
    if len(rows) == 1:
        yield from table_head(("column", "value"))
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
