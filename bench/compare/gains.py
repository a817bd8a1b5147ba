"""What follows from the rows of a comparison: which variants compete, how far one is ahead, whether a part pays.

Called by `findings.py` and `results_page.py`. Comparison files name the parts of a method (`[[parts]]`); the page
of results states the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fednc.bench.compare.plan import ALONE, POOLED, Choice, Comparison, Variant
from fednc.bench.compare.report import Compared, factor, last5
from fednc.bench.compare.run_archive import Result
from fednc.common.config.tables import MethodSection
from fednc.common.tasks.metric_info import PERCENT

OURS, BASELINE = "fednc", "fedavg"
POINTS = 0.5  # a mean gain counts if it exceeds this, and if its 95 % confidence interval does not hold zero
# Student's t for that interval, by the number of seeds; for more than ten seeds as for ten, which is cautious.
_STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


@dataclass(frozen=True)
class Gain:
    """How far one variant is ahead of another in one setting, seed by seed: in points, or in the metric's unit.

    Positive is better in either direction of the metric. `rivals` were compared; `than` is the best of them.
    `is_unused`: the initial scales of the variant were refused before round 1, so it is the run without them.
    """

    setting: str
    of_seed: tuple[float, ...]
    than: str
    is_share: bool = True
    rivals: tuple[str, ...] = ()
    is_unused: bool = False

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.of_seed)

    @property
    def verdict(self) -> int:
        """1: pays, -1: costs, 0: no clear difference. One seed shows nothing."""
        if len(self.of_seed) < 2:
            return 0
        if not math.isfinite(self.mean):  # one of the two failed, which is infinitely far off
            return (self.mean > 0) - (self.mean < 0)
        seeds = len(self.of_seed)
        half_interval = _STUDENT_T[min(seeds, 10)] * stdev(self.of_seed) / math.sqrt(seeds)
        least = max(half_interval, POINTS if self.is_share else 0.0)
        return (self.mean > least) - (self.mean < -least)

    def __str__(self) -> str:
        form = ".1f" if self.is_share else ".4g"
        if not math.isfinite(self.mean):
            return "ahead: the other failed" if self.mean > 0 else "behind: failed"
        spread = f" ± {stdev(self.of_seed):{form}}" if len(self.of_seed) > 1 else ""
        return f"{self.mean:+{form}}{spread}"


def gains(compared: Compared, variant: str, against: Sequence[str]) -> list[Gain]:
    """The gain in each setting that has one."""
    settings = (setting.name for setting in compared.plan.settings)
    return [gain for setting in settings if (gain := gain_in(compared, setting, variant, against))]


def gain_in(compared: Compared, setting: str, variant: str, against: Sequence[str]) -> Gain | None:
    """How far `variant` is ahead of the best of `against`, over the seeds that both have; None: there are none."""
    metric = compared.metric
    ours = _by_seed(compared, setting, variant)
    theirs = {name: _by_seed(compared, setting, name) for name in against}
    shared = {name: sorted(ours.keys() & values.keys()) for name, values in theirs.items()}
    rivals = {name: fmean(theirs[name][seed] for seed in seeds) for name, seeds in shared.items() if seeds}
    if not rivals:
        return None
    best = (max if metric.higher_is_better else min)(rivals, key=rivals.__getitem__)
    scale = factor(metric) if metric.higher_is_better else -factor(metric)
    ahead = tuple(scale * _difference(ours[seed], theirs[best][seed]) for seed in shared[best])
    return Gain(
        setting,
        ahead,
        best,
        is_share=metric.unit == PERCENT,
        rivals=tuple(rivals),
        is_unused=all(map(_refused_scales, compared.of(setting, variant))),
    )


def _refused_scales(row: Result) -> bool:
    init = row["summary"].get("init") or {}
    return bool(init.get("initialiser", "ordinary") != "ordinary" and not init["used"])


def best_of(compared: Compared, setting: str, variants: Sequence[str]) -> str:
    """Of these variants the one with the best metric, mean over its seeds; empty if none was run."""
    metric = compared.metric
    found = {name: rows for name in variants if (rows := compared.of(setting, name))}
    means = {name: fmean(last5(row, metric) for row in rows) for name, rows in found.items()}
    return (max if metric.higher_is_better else min)(means, key=means.__getitem__, default="")


def _difference(one: float, other: float) -> float:
    return 0.0 if one == other else one - other  # two runs that failed are equally far off


def _by_seed(compared: Compared, setting: str, variant: str) -> dict[int, float]:
    metric = compared.metric
    return {row["seed"]: last5(row, metric) for row in compared.of(setting, variant)}


def ours(plan: Comparison) -> str:
    """The variant that is fednc as it ships; empty if there is none."""
    return _shipped(plan, OURS)


def fedavg(plan: Comparison, *, readout: str = "") -> str:
    """The variant that is fedavg as it ships, or with another read-out and no other change; empty: none."""
    return _shipped(plan, BASELINE, **({"readout": readout} if readout else {}))


def fedavg_with_our_readout(plan: Comparison) -> str:
    """The variant that is fedavg with the read-out of fednc; empty if there is none."""
    return fedavg(plan, readout=MethodSection.model_validate({"name": OURS}).readout)


def chosen(compared: Compared, setting: str, choice: Choice) -> str:
    """The variant with the best metric on validation data at its own best rate; of two equal ones the first."""
    metric = compared.metric
    sign = 1 if metric.higher_is_better else -1
    found: dict[str, float] = {}
    for row in compared.tuning:
        if row["setting"] == setting and row["variant"] in choice.among:
            value = sign * last5(row, metric)
            found[row["variant"]] = max(found.get(row["variant"], -math.inf), value)
    return max((name for name in choice.among if name in found), key=lambda name: found[name], default="")


def leading(compared: Compared, setting: str) -> str:
    """The variant that stands for fednc: the one that validation data chooses, or fednc as it ships."""
    choices = compared.plan.choices[:1]
    return next((chosen(compared, setting, choice) for choice in choices), ours(compared.plan))


def alone(plan: Comparison) -> list[str]:
    """The variants that give each client a model of its own."""
    return [variant.name for variant in plan.variants if variant.clients == ALONE]


def central(plan: Comparison) -> list[str]:
    """The variants that train one model of all data at one place."""
    return [variant.name for variant in plan.variants if variant.clients == POOLED]


def others(plan: Comparison) -> list[str]:
    """The variants that are other methods than fednc. One with the class memory as read-out has half of fednc.

    A variant that changes the task is no method: it differs in what is learnt.
    """
    plain = [variant for variant in plan.variants if not (variant.clients or variant.task)]
    methods = {variant.name: method_of(plan, variant) for variant in plain}
    return [name for name, method in methods.items() if method.name != OURS and not method.uses_memory]


def fedetf(plan: Comparison) -> str:
    """The variant that is fedetf as it ships; empty if there is none."""
    return _shipped(plan, "fedetf")


def _shipped(plan: Comparison, method: str, **changes: str) -> str:
    wanted = MethodSection.model_validate({"name": method, **changes})
    plain = [one for one in plan.variants if not (one.frame or one.init or one.clients or one.task)]
    return next((variant.name for variant in plain if method_of(plan, variant) == wanted), "")


def method_of(plan: Comparison, variant: Variant) -> MethodSection:
    """The variant's method, with the keys that all variants have."""
    return MethodSection.model_validate({**plan.run.get("method", {}), **variant.method})


def share_of_rounds(compared: Compared, setting: str) -> float:
    """Our rounds to the baseline's best, over the baseline's own; infinite if a seed does not get there."""
    own, theirs = (
        compared.rounds_to_target(setting, name) for name in (ours(compared.plan), compared.plan.baseline)
    )
    if None in own or not own:
        return math.inf
    return sum(filter(None, own)) / sum(filter(None, theirs))
