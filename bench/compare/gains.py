"""What follows from a comparison: how far ahead a variant is, seed by seed, and whether a part of a method pays.

Called by `results_page.py`. A part is judged by the comparison file that names it (`[[parts]]`); the rules are
stated on the page itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fednc.bench.compare.plan import Comparison, Variant
from fednc.bench.compare.report import Compared, last5
from fednc.common.config.tables import MethodSection

OURS = "fednc"
ERRORS, POINTS = 2.0, 0.5  # a mean gain counts beyond as many standard errors, and beyond as many points
_FEW_ROUNDS = 0.5


@dataclass(frozen=True)
class Gain:
    """How far ahead one variant is in one setting, in points, for each seed; ahead of which."""

    setting: str
    of_seed: tuple[float, ...]
    than: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.of_seed)

    @property
    def verdict(self) -> int:
        """1: pays, -1: costs, 0: neither can be told. One seed tells nothing."""
        if len(self.of_seed) < 2:
            return 0
        error = stdev(self.of_seed) / math.sqrt(len(self.of_seed))
        least = max(ERRORS * error, POINTS)
        return (self.mean > least) - (self.mean < -least)

    def __str__(self) -> str:
        spread = f" ± {stdev(self.of_seed):.1f}" if len(self.of_seed) > 1 else ""
        return f"{self.mean:+.1f}{spread}"


def gains(compared: Compared, variant: str, against: Sequence[str]) -> list[Gain]:
    """For each setting how far `variant` is ahead of the best of `against`, over the seeds that both have."""
    found = []
    for setting in compared.plan.settings:
        ours = _by_seed(compared, setting.name, variant)
        theirs = {name: _by_seed(compared, setting.name, name) for name in against}
        rivals = {name: fmean(values.values()) for name, values in theirs.items() if values}
        if ours and rivals:
            best = max(rivals, key=rivals.__getitem__)
            seeds = sorted(ours.keys() & theirs[best].keys())
            found.append(Gain(setting.name, tuple(100 * (ours[s] - theirs[best][s]) for s in seeds), best))
    return found


def _by_seed(compared: Compared, setting: str, variant: str) -> dict[int, float]:
    return {row["seed"]: last5(row) for row in compared.of(setting, variant)}


def others(plan: Comparison) -> list[str]:
    """The variants that are other methods than ours. What is read out by the class memory is half ours."""
    return [variant.name for variant in plan.variants if not _has_a_part_of_ours(variant)]


def _has_a_part_of_ours(variant: Variant) -> bool:
    method = MethodSection.model_validate(variant.method)
    return method.name == OURS or method.uses_memory


def has_contest(compared: Compared) -> bool:
    names = [variant.name for variant in compared.plan.variants]
    return OURS in names and bool(others(compared.plan))


def conclusions(comparisons: Sequence[Compared]) -> Iterator[str]:
    """Lines on what was found: first what does not pay."""
    judged = [
        (part.name, found)
        for one in comparisons
        for part in one.plan.parts
        if (found := gains(one, part.variant, part.against))
    ]
    never = [name + _told(found) for name, found in judged if not _pays(found)]
    mixed = [name + _told(found) for name, found in judged if _pays(found) and _costs(found)]
    paying = [name + _told(found) for name, found in judged if _pays(found) and not _costs(found)]
    contests = [
        (one, gain) for one in comparisons if has_contest(one) for gain in gains(one, OURS, others(one.plan))
    ]
    ahead = [_contest(one, gain) for one, gain in contests if gain.verdict > 0]
    behind = [_contest(one, gain) for one, gain in contests if gain.verdict <= 0]
    slow = [_slowness(one, gain) for one, gain in contests if share_of_rounds(one, gain.setting) > _FEW_ROUNDS]
    for what, told in (
        (f"{OURS} is not ahead of the best other method on", behind),
        (f"{OURS} takes more than {_FEW_ROUNDS:.0%} of the baseline's rounds to the baseline's best on", slow),
        ("What does not pay", never),
        ("What pays in one setting and costs in another", mixed),
        ("What pays", paying),
        (f"{OURS} is ahead of the best other method on", ahead),
    ):
        if told:
            yield f"**{what}:** {'; '.join(told)}."
            yield ""
    if not comparisons:
        yield "Nothing has been measured yet."


def _contest(one: Compared, gain: Gain) -> str:
    return f"{one.plan.name}, {gain.setting} ({gain} points against {gain.than})"


def _slowness(one: Compared, gain: Gain) -> str:
    share = share_of_rounds(one, gain.setting)
    told = "not reached with every seed" if share == math.inf else f"{share:.0%}"
    return f"{one.plan.name}, {gain.setting} ({told})"


def share_of_rounds(compared: Compared, setting: str) -> float:
    """Our rounds to the baseline's best, over the baseline's own; infinite where a seed does not get there."""
    ours, theirs = (compared.rounds_to_target(setting, name) for name in (OURS, compared.plan.baseline))
    if None in ours or not ours:
        return math.inf
    return sum(filter(None, ours)) / sum(filter(None, theirs))


def _pays(found: Sequence[Gain]) -> bool:
    return any(gain.verdict > 0 for gain in found)


def _costs(found: Sequence[Gain]) -> bool:
    return any(gain.verdict < 0 for gain in found)


def _told(found: Sequence[Gain]) -> str:
    return f" ({', '.join(f'{gain} on {gain.setting}' for gain in found)})"
