"""How far apart clients are: the drift of their class means, which the class memory should reduce.

The server sums it up as replies arrive. Must not know where features come from.

Legend: K label space, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fednc.common.learning.class_memory import ClassSums, on_grid

DRIFT_GRID_BITS = (
    32  # exact for up to 2^21 clients; finer, because the drift is a difference of nearly equal numbers
)


@dataclass(eq=False)
class DriftSums:
    """Class drift between clients: mean over classes c, and over clients k that have c, of |v_kc - v_c|^2.

    v_kc is the client's own class mean, and v_c the plain mean of these over the clients that have c. Stored as
    sums of 1, v and |v|^2 per class, since mean |v - mean v|^2 = mean |v|^2 - |mean v|^2. So no list of clients is
    needed, and their order does not matter.

    Attributes:
        square_K: float64, sum over clients of |v_kc|^2.
        sum_KD: float64, sum over clients of v_kc.
        clients_K: int64, number of clients that have the class.
    """

    square_K: Tensor
    sum_KD: Tensor
    clients_K: Tensor

    @classmethod
    def zeros(cls, label_space: int, dim: int) -> DriftSums:
        """The sums over zero clients."""
        return cls(
            square_K=torch.zeros(label_space, dtype=torch.float64),
            sum_KD=torch.zeros(label_space, dim, dtype=torch.float64),
            clients_K=torch.zeros(label_space, dtype=torch.int64),
        )

    def add_client(self, sums: ClassSums) -> Self:
        """Add one client's class sums, in place."""
        held_K = sums.count_K > 0
        mean_KD = on_grid(torch.where(held_K.unsqueeze(1), sums.mean_KD, 0.0), DRIFT_GRID_BITS)
        self.square_K.add_(on_grid(mean_KD.square().sum(dim=1), DRIFT_GRID_BITS))
        self.sum_KD.add_(mean_KD)
        self.clients_K.add_(held_K)
        return self

    def value(self) -> float:
        """The drift; NaN until a client has sent a class."""
        clients_K = self.clients_K.clamp(min=1)
        centre_KD = self.sum_KD / clients_K.unsqueeze(1)
        spread_K = (self.square_K / clients_K - centre_KD.square().sum(dim=1)).clamp(min=0)
        return spread_K[self.clients_K > 0].mean().item()
