"""docs/results.md, made from results/ alone: `make results` writes it, a test compares it with the committed page.

The long comparisons come first: a table, then a picture for each claim. Then all others, and smoke tests last.
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

from fednc.bench.compare import claims, file_comment, long_tier, natural, relative_gains
from fednc.bench.compare.findings import Finding, findings, listed, overview, paragraph, rules
from fednc.bench.compare.gains import OURS, Gain, gains, others, ours
from fednc.bench.compare.plan import MethodPart, Variant, read_comparison
from fednc.bench.compare.report import Compared, on_data, results_table, table_head, tuning_table, worded
from fednc.bench.compare.results_folder import Found, read_folder
from fednc.bench.compare.run_archive import Result
from fednc.bench.compare.terms import COLUMNS, METHODS, PICTURES, SPEED, TERMS, explained
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

_BENCHES = ("link", "fold", "scale", "trainer")
_OF_A_SETTING = [kind for kind in PICTURES if kind not in ("claims", "initialisation")]
_OPENING = """
How close federated training comes to training with all data at one place, and what each part of it is worth.
*fednc* is this project's method: the class vectors are fixed, the loss allows for each client's class
frequencies, and a model is tested by its *read-out*, the nearest class mean. *+fitted*: the server computes the
last layer instead of training it. *central-*: all images at one place.
"""
_CAPTION = """
Test accuracy of the global model in per cent, mean of the last five evaluations; then mean ± standard deviation
over the seeds. The best other method is the best of those that were run in that setting. The last column shows how
much of the lead comes from the read-out alone.
"""
_SMOKE = """
Eight to twelve rounds on at most 6,000 images. They are quick, so they show whether a change broke a method, and
what happens in the first rounds. They say little about the end of training: for that see the top of the page.
"""
_UNRUN = "Nothing has been measured yet."
_NATURAL = """
Clients that differ because they are different hospitals, domains or people. Each trains and is tested on data of
its own. The first figure is for all test examples together, the second is the mean over the clients. Alone: each
client has the model that it trains by itself. At one place: one model of all training data, which a federation
wants to reach without moving the data. Each comparison's section has all methods and all clients.
"""
_CHOSEN = """
Learning rates, and the choice among several variants, follow validation data held out of training. A difference
to a published figure is called one if it exceeds two standard errors of our test data.
"""
_SOURCE = """
`make results` writes this page from the rows in `results/`, and a test fails if it says anything else. The
commands on the page run what is missing. A row (`runs.jsonl.gz`) holds its configuration, command, commit (+: with
changes that were not committed) and hardware. Learning rates were chosen per method and setting on validation
data, with a seed that no result uses. [compare.md](compare.md) says how to get data and run a comparison.
"""
_NEXT = """
Then come [clients with data of their own](#clients-with-data-of-their-own), [other questions](#other-questions),
[what did not run](#what-did-not-run), [all words](#how-to-read-this-page) and all details.
"""


def page(configs: Path, results: Path) -> str:
    """The whole page.

    Args:
        configs: folder of comparison files.
        results: folder with one folder for each comparison, and `bench` for measurements of speed.

    Raises:
        DataError, ConfigError: a file of either cannot be used.
    """
    found = _read(configs, results)
    by_tier = {tier: _shown(found, tier) for tier in ("long", "", "smoke")}
    measured = sorted((results / "bench").glob("*.json"))
    lines = ["# Results", "", *paragraph(_OPENING.strip()), "", *_long(by_tier["long"], configs, results)]
    lines += _natural([one for one in _by_accuracy(by_tier[""]) if natural.is_natural(one)], configs)
    lines += ["## Other questions", "", *_findings(by_tier[""], configs)]
    lines += ["## What did not run", "", *_not_run(found, configs), *_not_measured(measured), ""]
    lines += ["## How to read this page", "", *paragraph(_SOURCE.strip()), *_words()]
    for one in (one for tier in ("long", "") for one in by_tier[tier]):
        lines += ["", *_section(one, _of(found, one), results / one.plan.name, configs)]
    lines += _speed(measured)
    if by_tier["smoke"]:
        lines += [
            "",
            "## Smoke tests",
            "",
            *paragraph(_SMOKE.strip()),
            "",
            *overview(_by_accuracy(by_tier["smoke"])),
        ]
        lines += ["", *paragraph(_CAPTION.strip()), "", *_findings(by_tier["smoke"], configs)]
    for one in by_tier["smoke"]:
        lines += ["", *_section(one, _of(found, one), results / one.plan.name, configs)]
    return "\n".join(lines).rstrip("\n") + "\n"


def draw(configs: Path, results: Path) -> None:
    """Draw the pictures of the claims. Raises MissingExtraError: matplotlib is not installed."""
    comparisons = _shown(_read(configs, results), "long")
    claims.draw(_claims(comparisons), comparisons, results / claims.FOLDER)


def _read(configs: Path, results: Path) -> list[Found]:
    plans = [read_comparison(path) for path in sorted(configs.glob("*.toml"), key=lambda path: path.stem)]
    return [read_folder(plan, results / plan.name) for plan in plans]


def _shown(found: Sequence[Found], tier: str) -> list[Compared]:
    return [one.compared for one in found if one.compared and one.plan.tier == tier]


def _of(found: Sequence[Found], compared: Compared) -> Found:
    return next(one for one in found if one.compared is compared)


def _by_accuracy(comparisons: Sequence[Compared]) -> list[Compared]:
    """Those whose gains are in points of accuracy; a comparison by another metric has its section alone."""
    return [one for one in comparisons if one.metric == ACCURACY]


def _claims(comparisons: Sequence[Compared]) -> list[Finding]:
    return findings(_by_accuracy(comparisons))


def _long(comparisons: Sequence[Compared], configs: Path, results: Path) -> Iterator[str]:
    """The top: the base cell, the claims, one factor at a time."""
    if not comparisons:
        yield from ["The long comparisons: nothing has been measured yet.", ""]
        return
    yield from long_tier.base_cell(comparisons[0], configs)
    yield from [*paragraph(_NEXT.strip()), "", "## What pays and what does not", "", *rules()]
    yield from claims.section(_claims(comparisons), configs, results / claims.FOLDER)
    yield from ["## One factor at a time", "", *long_tier.one_factor(comparisons, configs)]


def _findings(comparisons: Sequence[Compared], configs: Path) -> Iterator[str]:
    there = _by_accuracy(comparisons)
    if not there:
        yield from [_UNRUN, ""]
        return
    yield from listed(there, configs)


def _natural(comparisons: Sequence[Compared], configs: Path) -> Iterator[str]:
    """The section on clients with data of their own; nothing if there are none."""
    if not comparisons:
        return
    yield from ["## Clients with data of their own", "", *paragraph(_NATURAL.strip()), ""]
    yield from [*natural.overview(comparisons), "", *paragraph(_CHOSEN.strip()), ""]
    for compared in comparisons:
        for setting in compared.plan.settings:
            yield from paragraph(" ".join(natural.headline(compared, setting.name)))
        yield from file_comment.code(configs, [compared.plan.name])
    yield from paragraph(
        "Published figures: "
        + "; ".join(f"{one.plan.name}: {one.plan.published_by}" for one in comparisons if one.plan.published_by)
        + "."
    )
    yield ""


def _words() -> Iterator[str]:
    for kind, terms in (("word", TERMS), ("method", METHODS), ("column", COLUMNS), ("picture", PICTURES)):
        yield from ["", *explained(kind, terms)]


def _not_run(found: Sequence[Found], configs: Path) -> Iterator[str]:
    """A table of the comparisons that lack runs, in which settings, and the commands that run them."""
    yield from table_head(("comparison", "results", "tuning runs", "not run", "command"))
    for one in (one for one in found if one.missing):
        name, older = one.plan.name, f", {one.older} of an earlier version" if one.older else ""
        every = len(one.missing) == len(one.plan.settings) and not one.there
        lacks = "all" if every else "; ".join(f"{setting}: {count} runs" for setting, count in one.missing.items())
        lines = file_comment.commands(configs / f"{name}.toml", one.missing)
        run = "<br>".join(f"`{line}`" for line in lines)
        yield f"| [{name}](../bench/configs/{name}.toml) | {_done(one)}{older} | {lacks} | {run} |"


def _done(one: Found) -> str:
    results = f"{one.there - one.tuned} of {one.planned - one.to_tune}"
    return f"{results} | {one.tuned} of {one.to_tune}"


def _not_measured(paths: Sequence[Path]) -> Iterator[str]:
    for kind in _BENCHES:
        if not any(path.stem.split("-")[0] == kind for path in paths):
            yield f"| speed: {kind} | none | - | all | `fednc bench {kind}` |"


def _section(compared: Compared, found: Found, folder: Path, configs: Path) -> Iterator[str]:
    plan = compared.plan
    about = file_comment.section(configs / f"{plan.name}.toml")
    yield from [f"## {plan.name}", "", *about, "", *_provenance(compared.final)]
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
            yield from _beside_published(compared, setting.name)
        yield from [f"Validation {worded(metric)} (last 5) by learning rate, seed {plan.tuning.seed}:", ""]
        yield from [*tuning_table(compared, setting.name), *_pictures(folder, setting.name, metric)]
    of_settings = {f"{setting.name}-{kind}" for setting in found.plan.settings for kind in _kinds(metric)}
    for path in sorted(folder.glob("*.png")):
        if path.stem not in of_settings:
            yield from ["", f"![{path.stem}](../results/{folder.name}/{path.name})"]


def _beside_published(compared: Compared, setting: str) -> Iterator[str]:
    if not compared.plan.published:
        return
    yield from ["Beside published figures:", "", *natural.table(compared, setting), ""]
    for sentence in natural.against_published(compared, setting):
        yield from paragraph(sentence, "* ")
    yield ""


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
    common = run.get("method", {})
    for variant in variants:
        tables = {
            "method": {**common, **variant.method},
            "frame": variant.frame,
            "init": variant.init,
            "task": variant.task,
            "sessions": variant.sessions,
        }
        keys = [
            f"`{table}.{key} = {json.dumps(value)}`" for table, v in tables.items() for key, value in v.items()
        ]
        keys += [f"trained on: {variant.clients}"] if variant.clients else []
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
    folders = Path(__file__).parents[1] / "configs", Path("results")
    draw(*folders)
    Path(sys.argv[1]).write_text(page(*folders), encoding="utf-8")
