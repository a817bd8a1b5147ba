"""Class memory: per-class sums of unit features, the global vector per class, and the drift between clients.

Sums are made by clients, merged by the server as replies arrive, kept in checkpoints. Must not know where features
come from: the width is whatever the task embeds, equal to the frame's or not.

Why the merge is exact in any order. A float64 running sum is not: (a+b)+c and a+(b+c) differ in the last bit. Here
each feature is rounded to a common fixed grid, multiples of 2^-24, before it is added. Features lie in the unit
ball, so up to 2^29 of them per class add up to less than 2^53 steps of the grid, and every sum on the way is a
float64 without rounding: identical bits for any order, batch size, partition over clients, or device. The price is
at most 2^-25 per coordinate of a mean, less than float32 rounds away anyway.

Legend: K label space, D feature width, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, Self

import torch
from torch import Tensor

from fednc.common.errors import ProtocolError

SUM_GRID_BITS = 24  # exact for up to 2^29 examples of a class in the whole federation
DRIFT_GRID_BITS = 32  # exact for up to 2^21 clients; finer, for the drift is a difference of near-equal numbers
NORM_SLACK = 1e-6  # float32 unit vectors may be this much longer than 1


@dataclass(eq=False)
class ClassSums:
    """Additive sums over examples: the sums of a union are the sum of the sums, bit for bit.

    Attributes:
        sum_KD: float64, per class the sum of its features (unit vectors).
        count_K: int64, examples in each sum.
    """

    sum_KD: Tensor
    count_K: Tensor

    @classmethod
    def zeros(cls, label_space: int, dim: int, device: torch.device | None = None) -> ClassSums:
        """Sums over no examples."""
        return cls(
            sum_KD=torch.zeros(label_space, dim, dtype=torch.float64, device=device),
            count_K=torch.zeros(label_space, dtype=torch.int64, device=device),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassSums:
        """What `to_tensors` gave. Raises ProtocolError: names, types or shapes are not those of class sums."""
        return cls(**_checked(tensors, "class sums", sum_KD=torch.float64, count_K=torch.int64))

    def to_tensors(self) -> dict[str, Tensor]:
        """By name, for the wire and checkpoints."""
        return {"sum_KD": self.sum_KD, "count_K": self.count_K}

    @property
    def mean_KD(self) -> Tensor:
        """float64 mean feature per class; zero where there is no example."""
        return self.sum_KD / self.count_K.clamp(min=1).unsqueeze(1)

    def add_batch(self, feat_BD: Tensor, label_B: Tensor) -> Self:
        """Add unit features (any float type) with their labels (any shape of B elements), in place."""
        label_B = label_B.reshape(-1)
        self.sum_KD.index_add_(0, label_B, _on_grid(feat_BD.detach().double(), SUM_GRID_BITS))
        self.count_K.index_add_(0, label_B, torch.ones_like(label_B, dtype=torch.int64))
        return self

    def merge(self, other: ClassSums) -> Self:
        """Add the sums of other examples, in place. Raises ProtocolError: they have another shape."""
        if other.sum_KD.shape != self.sum_KD.shape:
            _refuse(f"shape {list(other.sum_KD.shape)} instead of {list(self.sum_KD.shape)}")
        # A peer may send sums that are off the grid (noise, another version); ours do not change here.
        self.sum_KD.copy_(_on_grid(self.sum_KD, SUM_GRID_BITS) + _on_grid(other.sum_KD, SUM_GRID_BITS))
        self.count_K.add_(other.count_K)
        return self

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(sum_KD=self.sum_KD.clone(), count_K=self.count_K.clone()).merge(other)

    def to(self, device: torch.device) -> ClassSums:
        """The same sums on `device`."""
        return ClassSums(sum_KD=self.sum_KD.to(device), count_K=self.count_K.to(device))


def check_sums(sums: ClassSums, label_space: int, declared_examples: int) -> None:
    """Refuse sums that no set of `declared_examples` unit features can have.

    Raises:
        ProtocolError: other classes than the run's, counts below 0 or above those declared, values that are not
            finite, or a sum longer than its count (unit features cannot add up to more).
    """
    if sums.count_K.shape[0] != label_space:
        _refuse(f"{sums.count_K.shape[0]} classes instead of the run's {label_space}")
    if (sums.count_K < 0).any():
        _refuse(f"a negative count ({int(sums.count_K.min())})")
    # Both: the total of absurd counts may wrap around in 64 bits.
    if (sums.count_K > declared_examples).any() or int(sums.count_K.sum()) > declared_examples:
        _refuse(f"counts of {int(sums.count_K.sum())} examples where {declared_examples} were declared")
    if not torch.isfinite(sums.sum_KD).all():
        _refuse("values that are not finite")
    norm_K = torch.linalg.vector_norm(sums.sum_KD, dim=1)
    too_long_K = norm_K > sums.count_K * (1 + NORM_SLACK) + NORM_SLACK
    if too_long_K.any():
        c = int(too_long_K.nonzero()[0])
        _refuse(f"a sum of length {norm_K[c].item():.6g} for the {int(sums.count_K[c])} examples of class {c}")


@dataclass(frozen=True, eq=False)
class ClassMemory:
    """One global vector per class; a value, never changed in place.

    Its width is that of the features it was made from, not necessarily the frame's: a task that rehearses keeps
    unit vectors from before the projection and projects them anew at each step.

    Attributes:
        mean_KD: float32; not renormalised, so that its length (at most 1) tells how concentrated the class is.
        seen_K: bool, classes that somebody ever held; the rows of the others are zero.
    """

    mean_KD: Tensor
    seen_K: Tensor

    @classmethod
    def empty(cls, label_space: int, dim: int) -> ClassMemory:
        """No class seen yet."""
        return cls(mean_KD=torch.zeros(label_space, dim), seen_K=torch.zeros(label_space, dtype=torch.bool))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassMemory:
        """What `to_tensors` gave. Raises ProtocolError: names, types or shapes are not those of a memory."""
        return cls(**_checked(tensors, "class memory", mean_KD=torch.float32, seen_K=torch.bool))

    def to_tensors(self) -> dict[str, Tensor]:
        """By name, for the wire and checkpoints."""
        return {"mean_KD": self.mean_KD, "seen_K": self.seen_K}

    def update(self, sums: ClassSums, momentum: float) -> ClassMemory:
        """v <- w for a class seen for the first time, else momentum v + (1 - momentum) w; w is the mean in `sums`.

        Classes without examples in `sums` keep their vector, bit for bit.
        """
        held_K = sums.count_K > 0
        keep_K1 = momentum * self.seen_K.double().unsqueeze(1)
        moved_KD = keep_K1 * self.mean_KD.double() + (1 - keep_K1) * sums.mean_KD
        return replace(
            self,
            mean_KD=torch.where(held_K.unsqueeze(1), moved_KD.float(), self.mean_KD),
            seen_K=self.seen_K | held_K,
        )


@dataclass(eq=False)
class DriftSums:
    """Cross-client class drift, streamed: mean over classes c and over clients k holding c of |v_kc - v_c|^2.

    v_kc is the client's own class mean and v_c the plain mean of these over the clients holding c. Kept as sums of
    1, v and |v|^2 per class, for mean |v - mean v|^2 = mean |v|^2 - |mean v|^2: no list of clients, any order.

    Attributes:
        square_K: float64, sum over clients of |v_kc|^2.
        sum_KD: float64, sum over clients of v_kc.
        clients_K: int64, clients holding the class.
    """

    square_K: Tensor
    sum_KD: Tensor
    clients_K: Tensor

    @classmethod
    def zeros(cls, label_space: int, dim: int) -> DriftSums:
        """No client yet."""
        return cls(
            square_K=torch.zeros(label_space, dtype=torch.float64),
            sum_KD=torch.zeros(label_space, dim, dtype=torch.float64),
            clients_K=torch.zeros(label_space, dtype=torch.int64),
        )

    def add_client(self, sums: ClassSums) -> Self:
        """Add one client's class sums, in place."""
        held_K = sums.count_K > 0
        mean_KD = _on_grid(torch.where(held_K.unsqueeze(1), sums.mean_KD, 0.0), DRIFT_GRID_BITS)
        self.square_K.add_(_on_grid(mean_KD.square().sum(dim=1), DRIFT_GRID_BITS))
        self.sum_KD.add_(mean_KD)
        self.clients_K.add_(held_K)
        return self

    def value(self) -> float:
        """The drift; NaN before any client held any class."""
        clients_K = self.clients_K.clamp(min=1)
        centre_KD = self.sum_KD / clients_K.unsqueeze(1)
        spread_K = (self.square_K / clients_K - centre_KD.square().sum(dim=1)).clamp(min=0)
        return spread_K[self.clients_K > 0].mean().item()


def _on_grid(value: Tensor, bits: int) -> Tensor:
    return torch.round(value * 2.0**bits) * 2.0**-bits


def _refuse(what: str) -> NoReturn:
    raise ProtocolError(f"class sums with {what}: this client's update is not used")


def _checked(tensors: Mapping[str, Tensor], what: str, **dtypes: torch.dtype) -> dict[str, Tensor]:
    """`tensors` if they are a matrix [K, D] and a vector [K] with just these names and types, in this order."""
    given = {name: (value.dtype, list(value.shape)) for name, value in tensors.items()}
    matrix, vector = (tensors.get(name) for name in dtypes)
    fits = (
        matrix is not None
        and vector is not None
        and {name: dtype for name, (dtype, _) in given.items()} == dtypes
        and (matrix.dim(), vector.dim()) == (2, 1)
        and matrix.shape[0] == vector.shape[0]
    )
    if not fits:
        raise ProtocolError(
            f"not a {what}: given {given}, expected a matrix [K, D] and a vector [K] with types {dtypes}. "
            "Update both sides to the same version of fednc."
        )
    return dict(tensors)
