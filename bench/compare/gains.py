"""What follows from the rows of a comparison: which variants compete, how far one is ahead, whether a part pays.

Called by `findings.py` and `results_page.py`. Comparison files name the parts of a method (`[[parts]]`); the page
of results states the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fednc.bench.compare.plan import Comparison, Variant
from fednc.bench.compare.report import Compared, last5
from fednc.common.config.tables import MethodSection

OURS, BASELINE = "fednc", "fedavg"
STANDARD_ERRORS, POINTS = 2.0, 0.5  # a mean gain counts if it exceeds both


@dataclass(frozen=True)
class Gain:
    """How far one variant is ahead of another in one setting, in points, seed by seed."""

    setting: str
    of_seed: tuple[float, ...]
    than: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.of_seed)

    @property
    def verdict(self) -> int:
        """1: pays, -1: costs, 0: no clear difference. One seed shows nothing."""
        if len(self.of_seed) < 2:
            return 0
        error = stdev(self.of_seed) / math.sqrt(len(self.of_seed))
        least = max(STANDARD_ERRORS * error, POINTS)
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


def ours(plan: Comparison) -> str:
    """The variant that is fednc as it ships; empty if there is none."""
    return _shipped(plan, OURS)


def fedavg(plan: Comparison, *, readout: str = "") -> str:
    """The variant that is fedavg as it ships, or with another read-out and no other change; empty: none."""
    return _shipped(plan, BASELINE, **({"readout": readout} if readout else {}))


def fedavg_with_our_readout(plan: Comparison) -> str:
    """The variant that is fedavg with the read-out of fednc; empty if there is none."""
    return fedavg(plan, readout=MethodSection.model_validate({"name": OURS}).readout)


def others(plan: Comparison) -> list[str]:
    """The variants that are other methods than fednc. One with the class memory as read-out has half of fednc."""
    methods = {variant.name: _method(plan, variant) for variant in plan.variants}
    return [name for name, method in methods.items() if method.name != OURS and not method.uses_memory]


def _shipped(plan: Comparison, method: str, **changes: str) -> str:
    wanted = MethodSection.model_validate({"name": method, **changes})
    plain = [variant for variant in plan.variants if not variant.frame and not variant.init]
    return next((variant.name for variant in plain if _method(plan, variant) == wanted), "")


def _method(plan: Comparison, variant: Variant) -> MethodSection:
    return MethodSection.model_validate({**plan.run.get("method", {}), **variant.method})


def share_of_rounds(compared: Compared, setting: str) -> float:
    """Our rounds to the baseline's best, over the baseline's own; infinite if a seed does not get there."""
    own, theirs = (
        compared.rounds_to_target(setting, name) for name in (ours(compared.plan), compared.plan.baseline)
    )
    if None in own or not own:
        return math.inf
    return sum(filter(None, own)) / sum(filter(None, theirs))
