"""Neural initialisation optimisation (NIO, NeurIPS 2022, arXiv 2210.05956): scales that make gradients agree.

The central form for one process, and the rules that the federated forms in `server/` and `client/` share with it.

Legend: P scaled tensors, D sub-batches, N weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.common.initialise.adam import Branch, RescaleAdam
from fednc.common.initialise.probe import Gradient, Probe
from fednc.common.sections import InitSection
from fednc.common.tasks.base import Batch


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What one iteration minimises: weights on the mean cosine, and on each sub-batch's norm and squared norm."""

    branch: Branch
    cosine: float = 0.0
    norm: float = 0.0
    square: float = 0.0


def aim(section: InitSection, norms: Sequence[float]) -> Aim:
    """The mean norm where it is above the bound, else the objective."""
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
    """One sub-batch's share of what is minimised, []; slopes of shares add up to the slope of the whole.

    The mean cosine is 1/(D^2-D) sum_s u_s . (V - u_s) with V = sum_s u_s, hence its derivative
    2/(D^2-D) sum_s (du_s/dalpha)^T (V - u_s): `others_N` = V - u_s is a constant for sub-batch s.
    """
    agreement = 2 / max(1, units * units - units) * (gradient.unit_N @ others_N.detach())
    return aim.cosine * agreement + aim.norm * gradient.norm + aim.square * gradient.norm.square()


def learn(probe: Probe, draws: Iterable[Sequence[Batch]], section: InitSection) -> RescaleAdam:
    """Learn scales from sub-batches, D of them in each draw; the model is left at them."""
    adam = RescaleAdam(probe.layout.floor_P, section.lr, section.clip)
    for batches in draws:
        gradients = [probe.gradient(batch) for batch in batches]
        sum_N = torch.stack([one.unit_N.detach() for one in gradients]).sum(dim=0)
        now = aim(section, [float(one.norm.detach()) for one in gradients])
        total = torch.stack([share(one, sum_N - one.unit_N, len(gradients), now) for one in gradients]).sum()
        adam.step(now.branch, probe.slope(total))
        probe.set(adam.scale_P)
    return adam
