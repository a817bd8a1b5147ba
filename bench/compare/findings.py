"""What the rows say about fednc and its parts, with verdicts by stated rules: as lists, and a table of settings.

Called for docs/results.md. Every figure and every verdict is computed from the rows; titles and the names of parts
come from the comparison files.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fednc.bench.compare.file_comment import code
from fednc.bench.compare.gains import (
    OURS,
    POINTS,
    Gain,
    central,
    fedavg,
    fedavg_with_our_readout,
    gain_in,
    gains,
    leading,
    others,
    ours,
    share_of_rounds,
)
from fednc.bench.compare.plan import Comparison, MethodPart
from fednc.bench.compare.report import Compared, spread, table_head

WIDTH = 116
_COLUMNS = ("setting", OURS, "best other method", "fedavg", f"fedavg with {OURS}'s read-out")
_ABSENT = "not run"
_FEW_SETTINGS, _FEW_NAMES = 3, 7
_AS_A_WHOLE = ("leads", "trails")


@dataclass(frozen=True)
class Finding:
    """What all gains of one part, or of fednc as a whole, amount to."""

    name: str
    by_comparison: Mapping[str, Sequence[Gain]]
    verbs: tuple[str, str] = ("pays", "costs")

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Names of the comparisons that have it."""
        return tuple(self.by_comparison)

    @property
    def gains(self) -> list[Gain]:
        """All gains, one for each comparison and setting."""
        return [gain for found in self.by_comparison.values() for gain in found]

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
    def mean(self) -> float:
        """Over all pairs."""
        return fmean(self.pairs)

    @property
    def verdict(self) -> str:
        """The first verb if it holds in half of the settings and the second in none; or the other way round."""
        if not self.paying + self.costing:
            return "no clear difference"
        if 2 * max(self.paying, self.costing) < len(self.gains) or self.paying * self.costing:
            return "mixed"
        return self.verbs[not self.paying]

    @property
    def counts(self) -> str:
        """In how many pairs it is ahead, and in how many settings it pays or costs."""
        ahead, equal = sum(value > 0 for value in self.pairs), self.pairs.count(0.0)
        pairs = f"ahead in {ahead} of {len(self.pairs)} pairs" + (f", equal in {equal}" if equal else "")
        counts = zip(self.verbs, (self.paying, self.costing), strict=True)
        told = " and ".join(f"{verb} in {count}" for verb, count in counts if count)
        settings = f"{told or 'no clear difference in any'} of {len(self.gains)} settings"
        return f"{pairs}, {settings}{self._rivals}{self._unused}"

    @property
    def _rivals(self) -> str:
        """Those that were run, if there is a choice: the best other method is the best of these."""
        first, *others = self.gains
        elsewhere = list(dict.fromkeys(name for gain in others for name in gain.rivals))
        every = list(dict.fromkeys([*first.rivals, *elsewhere]))
        if len(every) < 2:
            return ""
        if others and {*elsewhere} < {*first.rivals} and len(self.comparisons) == 1:
            return f"; rivals: {_told(first.rivals)} in {first.setting}, {_told(elsewhere)} elsewhere"
        return f"; rivals: {_told(every)}"

    @property
    def _unused(self) -> str:
        count = sum(gain.is_unused for gain in self.gains)
        return f"; in {count} settings the clients' scales were refused, so nothing changed" if count else ""

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_means(found)}" for name, found in self.by_comparison.items())
        return f"**{self.verdict}**: {self.name} ({told}); {self.counts}"


def _told(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _FEW_NAMES else f"{len(names)} others"


def _means(found: Sequence[Gain]) -> str:
    """The mean gain of each setting; of many settings the least and the largest."""
    means = sorted(gain.mean for gain in found)
    return " / ".join(f"{mean:+.1f}" for mean in means) if len(means) <= _FEW_SETTINGS else span(means, "+.1f")


def span(values: Sequence[float], form: str) -> str:
    """The least and the largest value, or one if they look the same."""
    least, most = (format(pick(values), form) for pick in (min, max))
    return least if least == most else f"{least} to {most}"


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
    """A table: each setting in which fednc was run, and what it was run beside."""
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
    found = gain_in(one, setting, ours(one.plan), others(one.plan))
    if found is None:
        return _ABSENT
    run = sum(bool(one.of(setting, name)) for name in others(one.plan))
    return f"{_cell(one, setting, found.than)} ({found.than}, best of {run})"


def findings(comparisons: Sequence[Compared]) -> list[Finding]:
    """What fednc as a whole and each of its parts amount to, each over all of these comparisons that have it."""
    return [*_whole(comparisons), *_parts(comparisons)]


def listed(comparisons: Sequence[Compared], configs: Path) -> Iterator[str]:
    """The findings as lists, one for all that have the same evidence, with the commands of this at its head.

    `configs`: folder of comparison files.
    """
    lists: dict[tuple[str, ...], list[str]] = {}
    for finding in findings(comparisons):
        lists.setdefault(finding.comparisons, []).append(str(finding))
    with_us = [one for one in comparisons if ours(one.plan)]
    lists.setdefault(tuple(one.plan.name for one in with_us), []).extend(_behind_and_speed(with_us))
    for names, said in ((names, said) for names, said in lists.items() if said):
        yield from [*paragraph(f"From {links(names)}:"), *code(configs, names)]
        for line in said:
            yield from paragraph(line, "* ")
        yield ""


def rules() -> Iterator[str]:
    """How verdicts are made, for the page."""
    yield "A gain is a difference of two test accuracies, in points (percentage points)."
    yield ""
    for rule in (
        "A *pair* is one setting with one seed, run with the part and without it. If a part has several rivals, "
        "the best one counts.",
        f"A part *pays in a setting* if its mean gain there exceeds {POINTS:g} points and the 95 % confidence "
        "interval of the mean (Student's t over the seeds) lies above zero. It *costs* by the same rule.",
        "Over all settings a part *pays* if it pays in at least half of them and costs in none; *costs* likewise. "
        "Without any clear setting there is *no clear difference*; everything else is *mixed*.",
        f"By the same rules {OURS} as a whole *leads* or *trails*. Other methods have their own read-out.",
    ):
        yield from paragraph(rule, "* ")


def _whole(comparisons: Sequence[Compared]) -> list[Finding]:
    rivals: tuple[tuple[str, Callable[[Comparison], Sequence[str]]], ...] = (
        (f"{OURS} against the best other method", others),
        (f"{OURS} against fedavg with {OURS}'s read-out", lambda plan: [fedavg_with_our_readout(plan)]),
        (f"{OURS} against the best central training", central),
    )
    with_us = [one for one in comparisons if ours(one.plan)]
    found = [
        _finding(name, {one.plan.name: _gains_of_ours(one, of(one.plan)) for one in with_us}, _AS_A_WHOLE)
        for name, of in rivals
    ]
    return [one for one in found if one]


def _gains_of_ours(one: Compared, against: Sequence[str]) -> list[Gain]:
    """As `gains`, of the variant that stands for fednc in each setting."""
    names = (setting.name for setting in one.plan.settings)
    return [gain for name in names if (gain := gain_in(one, name, leading(one, name), against))]


def _behind_and_speed(with_us: Sequence[Compared]) -> Iterator[str]:
    """Where fednc is not ahead of the best other method, and how soon it reaches the baseline's best."""
    for one in with_us:
        for gain in _gains_of_ours(one, others(one.plan)):
            if gain.verdict <= 0:
                where = f"{links([one.plan.name])}, {gain.setting}"
                yield f"not clearly ahead of the best other method on {where} ({gain} against {gain.than})"
    if shares := [share_of_rounds(one, setting.name) for one in with_us for setting in one.plan.settings]:
        yield _speed(shares)


def _finding(
    name: str, by_comparison: dict[str, list[Gain]], verbs: tuple[str, str] = Finding.verbs
) -> Finding | None:
    found = {comparison: gains_ for comparison, gains_ in by_comparison.items() if gains_}
    return Finding(name, found, verbs) if found else None


def _speed(shares: Sequence[float]) -> str:
    reached = [share for share in shares if share < math.inf]
    said = (
        f"in {len(reached)} of {len(shares)} settings {OURS} reaches the baseline's best accuracy with every seed"
    )
    return f"{said}, in {span(reached, '.0%')} of the baseline's rounds" if reached else said


def _parts(comparisons: Sequence[Compared]) -> list[Finding]:
    """Each part over all comparisons that have it, the largest mean gain first."""
    named: dict[str, dict[str, list[Gain]]] = {}
    for one in comparisons:
        for part in one.plan.parts:
            if not _is_the_whole(one, part):
                by_comparison = named.setdefault(part.name, {}).setdefault(one.plan.name, [])
                by_comparison += gains(one, part.variant, part.against)
    found = [_finding(name, by_comparison) for name, by_comparison in named.items()]
    return sorted(filter(None, found), key=lambda finding: -finding.mean)


def _is_the_whole(one: Compared, part: MethodPart) -> bool:
    """Whether the part is fednc against fedavg with its read-out, which the list has anyway."""
    return (part.variant, part.against) == (ours(one.plan), (fedavg_with_our_readout(one.plan),))
