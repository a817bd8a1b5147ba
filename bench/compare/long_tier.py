"""The top of docs/results.md: all methods in the base cell of the long comparisons, then one factor at a time.

The base cell is the first setting of the first comparison with `tier = "long"`. Called by `results_page.py`; every
figure is computed from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from fednc.bench.compare.file_comment import code
from fednc.bench.compare.findings import paragraph
from fednc.bench.compare.gains import (
    OURS,
    best_of,
    central,
    fedavg,
    fedavg_with_our_readout,
    fedetf,
    gain_in,
    method_of,
    ours,
)
from fednc.bench.compare.plan import Comparison, Variant
from fednc.bench.compare.report import Compared, last5, spread, table_head
from fednc.common.config.tables import MethodSection
from fednc.common.methods.api import Method

_OUR_READOUT = MethodSection.model_validate({"name": OURS}).readout
_COLUMNS = ("method", "own read-out", f"{OURS}'s read-out", "below central training")
_ONE_OF: tuple[tuple[str, Callable[[Comparison], str]], ...] = (
    ("fedavg", fedavg),
    (f"fedavg with {OURS}'s read-out", fedavg_with_our_readout),
    ("fedetf", fedetf),
    (OURS, ours),
)
_ONE_FACTOR = (
    "The first row is the setting of the table at the top. Each other row changes what its name says, and nothing "
    "else. Test accuracy in per cent, as there; guessing gives {:.0f}."
)

_Line = list[Variant]  # variants that train alike: the one with fednc's read-out, and the one with another


def base_cell(compared: Compared, configs: Path) -> Iterator[str]:
    """The table of all methods in the base cell, the best first, and the commands that give it."""
    setting = compared.plan.settings[0].name
    yield from table_head(_COLUMNS)
    for line in sorted(_lines(compared, setting), key=lambda line: -_highest(compared, setting, _names(line))):
        cells = [_cell(compared, setting, line, has_ours=has_ours) for has_ours in (False, True)]
        names = _names(line)
        below = "-" if line[0].clients else _below_central(compared, setting, names)
        name = min(names, key=len)
        name = f"**{name}**" if ours(compared.plan) in names else name
        yield f"| {name}{_price(compared.plan, line)} | {' | '.join(cells)} | {below} |"
    yield from ["", *paragraph(_caption(compared)), "", *paragraph(_answer(compared))]
    yield from code(configs, [compared.plan.name], [setting])


def _caption(compared: Compared) -> str:
    plan, setting = compared.plan, compared.plan.settings[0]
    what = f"{plan.title or plan.name}, {setting.title or setting.name}, {len(plan.seeds)} seeds"
    rates = " and ".join(f"{rate:g}" for rate in plan.tuning.rates)
    return (
        f"{what}: test accuracy in per cent, mean of the last five evaluations ± standard deviation over the "
        f"seeds. Each method has its own read-out and {OURS}'s, each at the better of the learning rates {rates}, "
        f"by validation data after {plan.tuning.rounds} rounds. Last column: how far the better read-out is below "
        f"the best central training with as many epochs. Bold: {OURS} as it ships."
    )


def _answer(compared: Compared) -> str:
    """What the table says; empty if a method is missing."""
    plan, setting = compared.plan, compared.plan.settings[0].name
    names = (ours(plan), fedavg(plan), fedavg_with_our_readout(plan), best_of(compared, setting, central(plan)))
    own, plain, read_out, top = (100 * _highest(compared, setting, [name]) for name in names)
    if not all((own, plain, read_out, top)):
        return ""
    return (
        f"{OURS} is {own - plain:.1f} points ahead of fedavg. {read_out - plain:.1f} of them come from the "
        f"read-out, which fedavg can have too. {top - own:.1f} points to central training remain."
    )


def one_factor(comparisons: Sequence[Compared], configs: Path) -> Iterator[str]:
    """For each long comparison a table with a row for each setting, and the commands that give it."""
    for one in (one for one in comparisons if ours(one.plan)):
        chance = 100 / len(one.plan.run["task"]["classes"])
        yield from paragraph(f"{one.plan.title or one.plan.name}. {_ONE_FACTOR.format(chance)}")
        yield from ["", *_settings(one), *code(configs, [one.plan.name], [s.name for s in one.plan.settings])]


def _settings(one: Compared) -> Iterator[str]:
    yield from table_head(("setting", *(name for name, _ in _ONE_OF), "central", f"{OURS} below central"))
    for setting in one.plan.settings:
        cells = [_spread(one, setting.name, pick(one.plan)) for _, pick in _ONE_OF]
        top = best_of(one, setting.name, central(one.plan))
        cells.append(_spread(one, setting.name, top) if top else "-")
        cells.append(_below_central(one, setting.name, [ours(one.plan)]))
        yield f"| {setting.title or setting.name} (`{setting.name}`) | {' | '.join(cells)} |"


def _lines(compared: Compared, setting: str) -> list[_Line]:
    found: dict[str, _Line] = {}
    for variant in compared.plan.variants:
        if compared.of(setting, variant.name):
            found.setdefault(_training(compared.plan, variant), []).append(variant)
    return list(found.values())


def _names(line: _Line) -> list[str]:
    return [variant.name for variant in line]


def _training(plan: Comparison, variant: Variant) -> str:
    """The same for variants that differ only in the read-out."""
    alike = method_of(plan, variant).model_copy(update={"readout": ""})
    return repr((alike, variant.frame, variant.init, variant.task, variant.clients))


def _cell(compared: Compared, setting: str, line: _Line, *, has_ours: bool) -> str:
    methods = {variant.name: method_of(compared.plan, variant) for variant in line}
    names = [name for name, method in methods.items() if (method.readout == _OUR_READOUT) == has_ours]
    return _spread(compared, setting, names[0]) if names else "-"


def _spread(compared: Compared, setting: str, variant: str) -> str:
    """Mean and deviation, and over how many seeds if others have more."""
    rows = compared.of(setting, variant)
    if not rows:
        return "not run"
    seeds = len({row["seed"] for row in compared.final if row["setting"] == setting})
    return spread(rows, compared.metric) + (f" ({len(rows)} of {seeds} seeds)" if len(rows) < seeds else "")


def _highest(compared: Compared, setting: str, variants: Sequence[str]) -> float:
    """The highest mean over the seeds of these variants; 0 if none was run."""
    rows = [compared.of(setting, variant) for variant in variants]
    return max((fmean(last5(row, compared.metric) for row in found) for found in rows if found), default=0.0)


def _below_central(compared: Compared, setting: str, variants: Sequence[str]) -> str:
    """How far the better of `variants` is below the best central training, over the seeds that both have."""
    found = (gain_in(compared, setting, name, central(compared.plan)) for name in variants)
    best = max(filter(None, found), key=lambda gain: gain.mean, default=None)
    if best is None:
        return "-"
    return str(replace(best, of_seed=tuple(0.0 - value for value in best.of_seed))).removeprefix("+")


def _price(plan: Comparison, line: _Line) -> str:
    """What a method sends beside the model: as much again for those that have something to send."""
    parts = method_of(plan, line[0]).parts
    return " (twice the bytes)" if any(type(part).beside is not Method.beside for part in parts) else ""
