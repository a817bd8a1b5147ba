"""RescaleAdam (GradInit, NeurIPS 2021; NIO, NeurIPS 2022): Adam on one scale per tensor, with two branches.

Called with slopes that were computed elsewhere; knows neither models nor clients.

Legend: P scaled tensors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Branch = Literal["objective", "constraint"]
_MEAN, _SQUARE = 0.9, 0.999  # Adam's betas
_EPS = 1e-8


class RescaleAdam:
    """Each branch has its own first moment and step count; both share the second moment.

    Attributes:
        scale_P: float64, the current scales; ones at first.
        steps: number of steps in each branch.
    """

    def __init__(self, floor_P: Tensor, lr: float, clip: float) -> None:
        """`floor_P`: smallest value of each scale. `clip`: limit on each slope."""
        self._floor_P, self._lr, self._clip = floor_P.double(), lr, clip
        self.scale_P = torch.ones_like(self._floor_P)
        self.steps: dict[Branch, int] = {"objective": 0, "constraint": 0}
        self._mean_P = {branch: torch.zeros_like(self._floor_P) for branch in self.steps}
        self._square_P = torch.zeros_like(self._floor_P)

    def step(self, branch: Branch, slope_P: Tensor) -> None:
        """Take a step against `slope_P`, the derivative of what the branch minimises."""
        slope_P = slope_P.double().clamp(-self._clip, self._clip)
        self.steps[branch] += 1
        self._mean_P[branch].lerp_(slope_P, 1 - _MEAN)
        self._square_P.lerp_(slope_P.square(), 1 - _SQUARE)
        mean_P = self._mean_P[branch] / (1 - _MEAN ** self.steps[branch])
        square_P = self._square_P / (1 - _SQUARE ** sum(self.steps.values()))
        self.scale_P = torch.maximum(self.scale_P - self._lr * mean_P / (square_P.sqrt() + _EPS), self._floor_P)


def largest_scale(lr: float, iters: int) -> float:
    """Upper bound on any scale after `iters` steps.

    The longest step is lr / sqrt(1 - 0.999), when a branch's first slope is by far the largest so far.
    """
    return 1 + lr * iters / math.sqrt(1 - _SQUARE)
