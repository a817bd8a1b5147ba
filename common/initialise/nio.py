"""Neural initialisation optimisation (NIO, NeurIPS 2022, arXiv 2210.05956): scales that make gradients agree.

The central form for one process, and the rules that the federated forms in `server/` and `client/` share.

Legend: P scaled tensors, D sub-batches, N weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.common.config.tables import InitSection
from fednc.common.initialise.adam import Branch, RescaleAdam
from fednc.common.initialise.probe import Gradient, Probe
from fednc.common.tasks.api import Batch


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What one iteration minimises: weights of the mean cosine, and of each sub-batch's norm and squared norm."""

    branch: Branch
    cosine: float = 0.0
    norm: float = 0.0
    square: float = 0.0

    def value(self, cosine: float, norms: Sequence[float]) -> float:
        """The value that is minimised, for these gradients of the sub-batches."""
        return self.cosine * cosine + sum(self.norm * norm + self.square * norm**2 for norm in norms)


def aim(section: InitSection, norms: Sequence[float]) -> Aim:
    """The next aim: to lower the mean norm if it is above the bound, else the objective."""
    if sum(norms) / len(norms) > section.gamma:
        return Aim(branch="constraint", norm=1 / len(norms))
    return Aim(
        branch="objective",
        cosine=-1.0,
        norm=-section.gn_mul if section.objective == "cosine-norm" else 0.0,
        square=-section.gn_mul if section.objective == "cosine-square" else 0.0,
    )


def mean_cosine(sum_N: Tensor, units: int) -> float:
    """Mean cosine over all pairs among `units` unit vectors with sum `sum_N`; 1 for a single one."""
    return (float(sum_N.double().square().sum()) - units) / (units * units - units) if units > 1 else 1.0


def share(gradient: Gradient, others_N: Tensor, units: int, aim: Aim) -> Tensor:
    """One sub-batch's share of what is minimised, []. The slopes of all shares add up to the slope of the whole.

    The mean cosine is 1/(D^2-D) sum_s u_s . (V - u_s) with V = sum_s u_s, hence its derivative
    2/(D^2-D) sum_s (du_s/dalpha)^T (V - u_s): `others_N` = V - u_s is a constant for sub-batch s.
    """
    agreement = 2 / max(1, units * units - units) * (gradient.unit_N @ others_N.detach())
    return aim.cosine * agreement + aim.norm * gradient.norm + aim.square * gradient.norm.square()


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """Scales [P], and how many steps were taken in each branch."""

    scale_P: Tensor
    steps: Mapping[Branch, int]


class Search:
    """A search over scales. Keeps the best ones for which the mean norm was within the bound.

    Steps of the constraint branch are long: its slopes are far larger than those of the objective, with which it
    shares the second moment. So near the bound the scales move in a sawtooth, and the last ones are arbitrary; the
    paper trains from the last ones. If none were within the bound, the last ones are used here too.

    Attributes:
        scale_P: float64, the current scales; ones at first.
    """

    def __init__(self, floor_P: Tensor, section: InitSection) -> None:
        self._section = section
        self._adam = RescaleAdam(floor_P, section.lr, section.clip)
        self._least = math.inf
        self._best_P: Tensor | None = None

    @property
    def scale_P(self) -> Tensor:
        return self._adam.scale_P

    def aim(self, sum_N: Tensor, norms: Sequence[float]) -> Aim:
        """What the next step minimises, given sum and norms of the gradients' directions at `scale_P`."""
        now = aim(self._section, norms)
        value = now.value(mean_cosine(sum_N, len(norms)), norms)
        if now.branch == "objective" and value < self._least:
            self._least, self._best_P = value, self.scale_P
        return now

    def step(self, now: Aim, slope_P: Tensor) -> None:
        """Take a step against `slope_P` [P], the slope of `now`."""
        self._adam.step(now.branch, slope_P)

    def learnt(self) -> Learnt:
        """The best of all scales seen by `aim`."""
        best_P = self.scale_P if self._best_P is None else self._best_P
        return Learnt(scale_P=best_P, steps=dict(self._adam.steps))


def learn(probe: Probe, draws: Iterable[Sequence[Batch]], section: InitSection) -> Learnt:
    """Learn scales from draws of D sub-batches each. Leaves the model with these scales."""
    search = Search(probe.layout.floor_P, section)
    for batches in draws:
        gradients = [probe.gradient(batch) for batch in batches]
        sum_N = torch.stack([one.unit_N.detach() for one in gradients]).sum(dim=0)
        now = search.aim(sum_N, [float(one.norm.detach()) for one in gradients])
        total = torch.stack([share(one, sum_N - one.unit_N, len(gradients), now) for one in gradients]).sum()
        search.step(now, probe.slope(total))
        probe.set(search.scale_P)
    found = search.learnt()
    probe.set(found.scale_P)
    return found
