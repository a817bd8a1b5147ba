"""Which thing query is to find which object: the cheapest assignment (Hungarian method), picture by picture.

Called by losses and class memory. scipy comes with the extra `panoptic`; only training and memory need it.

Legend: B batch, Q thing queries, O objects of the targets, X pixels of a mask, M matches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import MissingExtraError
from fednc.tasks.panoptic.targets import Targets

EXTRA = "panoptic"
CLASS, DICE, MASK = 2.0, 4.0, 1.0  # weights of the costs, as published
_SOFT = 2e-3  # keeps the quotient of empty masks finite
Matches = tuple[Tensor, Tensor, Tensor]  # picture, query and object of each match, each [M]
Solver = Callable[[np.ndarray[Any, Any]], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def match(mask_BQhw: Tensor, share_BQC: Tensor | None, targets: Targets) -> Matches:
    """The assignment by masks and, if known, by the shares (probabilities) of the columns of classes.

    Every object gets a query: there are at most as many objects as queries.
    """
    assign = _solver()
    cost_BQO = _costs(mask_BQhw.detach(), share_BQC, targets).cpu().numpy()
    found = []
    for picture, count in enumerate(targets.counted_B.tolist()):
        query_M, object_M = assign(cost_BQO[picture, :, :count])
        found += [
            (picture, query, which) for query, which in zip(query_M.tolist(), object_M.tolist(), strict=True)
        ]
    rows = torch.tensor(found, dtype=torch.int64, device=mask_BQhw.device).reshape(-1, 3)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _costs(mask_BQhw: Tensor, share_BQC: Tensor | None, targets: Targets) -> Tensor:
    """float [B, Q, O]."""
    judged_B1X = targets.judged_Bhw.flatten(1)[:, None].float()
    guess_BQX = mask_BQhw.float().sigmoid().flatten(2) * judged_B1X
    truth_BOX = targets.thing_BQhw.flatten(2).float()
    both_BQO = guess_BQX @ truth_BOX.mT
    square_BQO = guess_BQX.square().sum(dim=2)[:, :, None] + truth_BOX.sum(dim=2)[:, None]
    pixels_B11 = judged_B1X.sum(dim=2, keepdim=True).clamp(min=1)
    neither_BQO = pixels_B11 - guess_BQX.sum(dim=2)[:, :, None] - truth_BOX.sum(dim=2)[:, None] + both_BQO
    cost_BQO = -DICE * 2 * both_BQO / (square_BQO + _SOFT) - MASK * (both_BQO + neither_BQO) / pixels_B11
    if share_BQC is not None:
        class_BQO = targets.class_BQ[:, None].expand(-1, share_BQC.shape[1], -1)
        cost_BQO = cost_BQO - CLASS * share_BQC.detach().float().gather(2, class_BQO)
    return cost_BQO.nan_to_num()  # a diverged model ends its training by its loss, not here


def check_solver() -> None:
    """Raises MissingExtraError: nothing can be matched here."""
    _solver()


def _solver() -> Solver:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise MissingExtraError("scipy", EXTRA, "task 'panoptic'") from e
    solver: Solver = linear_sum_assignment
    return solver
