"""The top of docs/results.md: one table of all settings, and one list of what pays and what does not.

Called by `results_page.py`. Every figure and every verdict is computed from the rows; titles and the names of
parts come from the comparison files.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from fednc.bench.compare.gains import (
    OURS,
    POINTS,
    STANDARD_ERRORS,
    Gain,
    fedavg,
    fedavg_with_our_readout,
    gains,
    others,
    ours,
    share_of_rounds,
)
from fednc.bench.compare.plan import MethodPart
from fednc.bench.compare.report import Compared, spread, table_head

WIDTH = 116
_COLUMNS = ("setting", OURS, "best other method", "fedavg", f"fedavg with {OURS}'s read-out")
_ABSENT = "not run"


@dataclass(frozen=True)
class Finding:
    """What all gains of one part, or of fednc as a whole, amount to."""

    name: str
    gains: tuple[Gain, ...]
    comparisons: tuple[str, ...]

    @property
    def pairs(self) -> list[float]:
        """All gains in points, of each setting and seed."""
        return [value for gain in self.gains for value in gain.of_seed]

    @property
    def paying(self) -> int:
        """Settings in which it pays."""
        return sum(gain.verdict > 0 for gain in self.gains)

    @property
    def costing(self) -> int:
        """Settings in which it costs."""
        return sum(gain.verdict < 0 for gain in self.gains)

    @property
    def pays(self) -> bool:
        """Whether it pays in at least half of its settings and costs in none."""
        return 2 * self.paying >= len(self.gains) and not self.costing

    def __str__(self) -> str:
        ahead, equal = sum(value > 0 for value in self.pairs), self.pairs.count(0.0)
        pairs = f"ahead in {ahead} of {len(self.pairs)} pairs" + (f", equal in {equal}" if equal else "")
        counts = {"pays": self.paying, "costs": self.costing}
        told = " and ".join(f"{verb} in {count}" for verb, count in counts.items() if count)
        settings = f"{told or 'no clear difference in any'} of {len(self.gains)} settings"
        return f"{fmean(self.pairs):+.1f}: {self.name}; {pairs}, {settings} ({links(self.comparisons)})"


def links(comparisons: Sequence[str]) -> str:
    """Links to the sections of the page."""
    return ", ".join(f"[{name}](#{name})" for name in comparisons)


def paragraph(text: str, first: str = "") -> list[str]:
    """The text in lines of the page's width; `first` begins a list item."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )


def overview(comparisons: Sequence[Compared]) -> Iterator[str]:
    """The table: each setting in which fednc was run, and what it was run beside."""
    yield from table_head(_COLUMNS)
    for one in (one for one in comparisons if ours(one.plan)):
        for setting in one.plan.settings:
            what = f"{one.plan.title or one.plan.name}: {setting.title or setting.name}"
            cells = [_cell(one, setting.name, name) for name in (ours(one.plan), *_beside(one))]
            cells.insert(1, _best_other(one, setting.name))
            yield f"| {what} ({links([one.plan.name])}) | {' | '.join(cells)} |"


def _beside(one: Compared) -> tuple[str, str]:
    return fedavg(one.plan), fedavg_with_our_readout(one.plan)


def _cell(one: Compared, setting: str, variant: str) -> str:
    rows = one.of(setting, variant)
    return spread(rows, one.metric) if rows else _ABSENT


def _best_other(one: Compared, setting: str) -> str:
    found = [gain for gain in gains(one, ours(one.plan), others(one.plan)) if gain.setting == setting]
    if not found:
        return _ABSENT
    run = sum(bool(one.of(setting, name)) for name in others(one.plan))
    return f"{_cell(one, setting, found[0].than)} ({found[0].than}, best of {run})"


def conclusions(comparisons: Sequence[Compared]) -> Iterator[str]:
    """The list: fednc as a whole, then its parts by what they do."""
    if not comparisons:
        yield "Nothing has been measured yet."
        return
    whole, found = [*_whole(comparisons)], _parts(comparisons)
    groups = (
        (f"**{OURS} as a whole**", whole),
        ("**Pays**", [one for one in found if one.pays]),
        (
            "**Pays in less than half of its settings, or costs in some**",
            [one for one in found if one.paying and not one.pays],
        ),
        ("**Does not pay**", [one for one in found if not one.paying]),
    )
    for title, members in groups:
        if members:
            yield from [title, ""]
            for member in members:
                yield from paragraph(str(member), "* ")
            yield ""


def rules() -> str:
    """How the list is made, for the page."""
    return (
        "Each line begins with the mean gain: a difference of two accuracies of this kind, in points. A pair is "
        "one setting with one seed, run with the part and without it; if a part has several rivals, the best one "
        f"counts. A part pays in a setting if its mean gain there exceeds {STANDARD_ERRORS:g} standard errors and "
        f"{POINTS:g} points, and costs if it is as far below zero. It is listed under *Pays* if it pays in at "
        "least half of its settings and costs in none."
    )


def _whole(comparisons: Sequence[Compared]) -> Iterator[Finding | str]:
    with_us = [one for one in comparisons if ours(one.plan)]
    contests = {one.plan.name: gains(one, ours(one.plan), others(one.plan)) for one in with_us}
    if found := _finding(f"{OURS} against the best other method", contests):
        yield found
    for name, gain in ((name, gain) for name, them in contests.items() for gain in them if gain.verdict <= 0):
        where = f"{links([name])}, {gain.setting}"
        yield f"{OURS} is not clearly ahead of the best other method on {where} ({gain} against {gain.than})"
    alike = {one.plan.name: gains(one, ours(one.plan), [fedavg_with_our_readout(one.plan)]) for one in with_us}
    if found := _finding(f"{OURS} against fedavg with {OURS}'s read-out", alike):
        yield found
    if shares := [share_of_rounds(one, setting.name) for one in with_us for setting in one.plan.settings]:
        yield _speed(shares)


def _finding(name: str, by_comparison: dict[str, list[Gain]]) -> Finding | None:
    found = {comparison: all_ for comparison, all_ in by_comparison.items() if all_}
    together = tuple(gain for all_ in found.values() for gain in all_)
    return Finding(name, together, tuple(found)) if together else None


def _speed(shares: Sequence[float]) -> str:
    reached = [share for share in shares if share < math.inf]
    said = (
        f"in {len(reached)} of {len(shares)} settings {OURS} reaches the baseline's best accuracy with every seed"
    )
    if not reached:
        return said
    least, most = (f"{pick(reached):.0%}" for pick in (min, max))
    return f"{said}, in {least if least == most else f'{least} to {most}'} of the baseline's rounds"


def _parts(comparisons: Sequence[Compared]) -> list[Finding]:
    """Each part over all comparisons that have it, the largest mean gain first."""
    named: dict[str, dict[str, list[Gain]]] = {}
    for one in comparisons:
        for part in one.plan.parts:
            if not _is_the_whole(one, part):
                by_comparison = named.setdefault(part.name, {}).setdefault(one.plan.name, [])
                by_comparison += gains(one, part.variant, part.against)
    found = [_finding(name, by_comparison) for name, by_comparison in named.items()]
    return sorted(filter(None, found), key=lambda finding: -fmean(finding.pairs))


def _is_the_whole(one: Compared, part: MethodPart) -> bool:
    """Whether the part is fednc against fedavg with its read-out, which the list has anyway."""
    return (part.variant, part.against) == (ours(one.plan), (fedavg_with_our_readout(one.plan),))
