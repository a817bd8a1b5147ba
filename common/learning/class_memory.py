"""Class memory: per-class sums of unit features, and the global vector per class.

Clients make the sums, the server merges them as replies arrive, and checkpoints contain them. Must not know where
features come from: their width depends on the task and may differ from the frame's.

Why merging is exact in any order: an ordinary float64 sum is not, because (a+b)+c and a+(b+c) can differ in the
last bit. Here each feature is first rounded to a fixed grid, multiples of 2^-24. Features lie in the unit ball, so
up to 2^29 of them per class add up to less than 2^53 grid steps, and every intermediate sum is an exact float64.
So any order, batch size, partition over clients and device gives the same bits. The cost is an error of at most
2^-25 per coordinate of a mean, less than float32 rounding. Second moments are sums of products of features that
were rounded to multiples of 2^-15. These products are multiples of 2^-30, so a plain matrix product is exact too,
for up to 2^23 examples in the whole federation. In runs that train they are sent as float32, so another partition
over clients gives other bits, but another order does not. Where they decide everything (`train.epochs = 0`), they
are sent as float64, and any partition gives the same bits. `coarse` sums halve what they cost: as correlations of
16 bits and one scale per dimension.

Legend: K label space, D feature width, B batch, T = D (D + 1) / 2 entries of an upper triangle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Self

import torch
from torch import Tensor

from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.learning.covariance import inverse_covariance
from fednc.common.learning.ridge import ridge_regression

SUM_GRID_BITS = 24  # exact for up to 2^29 examples of a class in the whole federation
MOMENT_GRID_BITS = 30  # for products; their factors have half as many
STEPS = 2**15 - 1  # a coarse correlation of 1, as an integer of 16 bits
OPTIONAL = ("metric_DD", "ridge_KD", "ridge_K")  # parts of a memory that only some read-outs use
NORM_SLACK = 1e-6  # float32 unit vectors may be this much longer than 1


@dataclass(eq=False)
class ClassSums:
    """Additive sums over examples: the sums of a union are exactly the sum of the sums.

    Attributes:
        sum_KD: float64, sum of the features (unit vectors) of each class.
        count_K: int64, number of examples in each sum.
        moment_DD: float64, sum of h h^T over the features h of all classes; None if the read-out does not need it.
        exact: second moments travel as float64, so that they too are the same for any partition over clients.
        coarse: they travel as correlations of 16 bits instead of float32.
    """

    sum_KD: Tensor
    count_K: Tensor
    moment_DD: Tensor | None = None
    exact: bool = False
    coarse: bool = False

    @classmethod
    def zeros(
        cls,
        label_space: int,
        dim: int,
        device: torch.device | None = None,
        *,
        moment: bool = False,
        exact: bool = False,
        coarse: bool = False,
    ) -> ClassSums:
        """Sums over zero examples, with second moments if `moment`."""
        return cls(
            sum_KD=torch.zeros(label_space, dim, dtype=torch.float64, device=device),
            count_K=torch.zeros(label_space, dtype=torch.int64, device=device),
            moment_DD=torch.zeros(dim, dim, dtype=torch.float64, device=device) if moment else None,
            exact=exact,
            coarse=coarse and not exact,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassSums:
        """The sums from the result of `to_tensors`. Raises ProtocolError for wrong names, types or shapes."""
        types = {"sum_KD": torch.float64, "count_K": torch.int64}
        if "moment_T" not in tensors:
            found = _checked(tensors, "class sums", types)
            return cls(sum_KD=found["sum_KD"], count_K=found["count_K"])
        given = tensors["moment_T"].dtype
        exact, coarse = given == torch.float64, given == torch.int16
        types |= {"moment_T": given if exact or coarse else torch.float32}
        found = _checked(tensors, "class sums", types | ({"scale_D": torch.float32} if coarse else {}))
        moment_DD = _square(found["moment_T"].double(), found["sum_KD"].shape[1])
        if coarse:
            moment_DD = moment_DD / STEPS * torch.outer(found["scale_D"].double(), found["scale_D"].double())
        return cls(
            sum_KD=found["sum_KD"], count_K=found["count_K"], moment_DD=moment_DD, exact=exact, coarse=coarse
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """By name, to send. Of second moments only the upper triangle; they are rounded unless `exact`."""
        sums = {"sum_KD": self.sum_KD, "count_K": self.count_K}
        if self.moment_DD is None:
            return sums
        if self.coarse:
            return {**sums, **_correlations(self.moment_DD)}
        moment_T = _triangle(self.moment_DD)
        return {**sums, "moment_T": moment_T if self.exact else moment_T.float()}

    @property
    def mean_KD(self) -> Tensor:
        """float64 mean feature per class; zero for a class without examples."""
        return self.sum_KD / self.count_K.clamp(min=1).unsqueeze(1)

    def add_batch(self, feat_BD: Tensor, label_B: Tensor) -> Self:
        """Add unit features (any float type) with their labels (any shape of B elements), in place."""
        label_B, feat_BD = label_B.reshape(-1), feat_BD.detach().double()
        self.sum_KD.index_add_(0, label_B, on_grid(feat_BD, SUM_GRID_BITS))
        self.count_K.index_add_(0, label_B, torch.ones_like(label_B, dtype=torch.int64))
        if self.moment_DD is not None:
            coarse_BD = on_grid(feat_BD, MOMENT_GRID_BITS // 2)
            self.moment_DD.addmm_(coarse_BD.T, coarse_BD)
        return self

    def merge(self, other: ClassSums) -> Self:
        """Add the sums of other examples, in place. Raises ProtocolError for another shape or missing moments."""
        if other.sum_KD.shape != self.sum_KD.shape:
            _refuse(f"shape {list(other.sum_KD.shape)} instead of {list(self.sum_KD.shape)}")
        # A peer may send sums that are off the grid (noise, another version); rounding does not change ours.
        self.sum_KD.copy_(on_grid(self.sum_KD, SUM_GRID_BITS) + on_grid(other.sum_KD, SUM_GRID_BITS))
        self.count_K.add_(other.count_K)
        if self.moment_DD is not None:
            if other.moment_DD is None:
                _refuse("no second moments, which this run's read-out needs")
            self.moment_DD.add_(on_grid(other.moment_DD, MOMENT_GRID_BITS))
        return self

    def __add__(self, other: ClassSums) -> ClassSums:
        return self.map(Tensor.clone).merge(other)

    def to(self, device: torch.device) -> ClassSums:
        """The same sums on `device`."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> ClassSums:
        """The same sums with `change` applied to each tensor."""
        moment_DD = None if self.moment_DD is None else change(self.moment_DD)
        return replace(self, sum_KD=change(self.sum_KD), count_K=change(self.count_K), moment_DD=moment_DD)

    def of_fewer(self, counted: int, held: int) -> ClassSums:
        """As if the sender had only `counted` of its `held` examples: the same means with less weight."""
        if counted >= held:
            return self
        count_K = (self.count_K.double() * (counted / held)).ceil().long()
        share_K = count_K / self.count_K.clamp(min=1)
        share = int(count_K.sum()) / max(1, int(self.count_K.sum()))
        moment_DD = None if self.moment_DD is None else self.moment_DD * share
        return replace(self, sum_KD=self.sum_KD * share_K.unsqueeze(1), count_K=count_K, moment_DD=moment_DD)

    @property
    def scatter_DD(self) -> Tensor:
        """float64 sum of (h - v)(h - v)^T, where v is the mean of h's class; needs second moments."""
        assert self.moment_DD is not None
        between_DD = (self.sum_KD.T * self.count_K.clamp(min=1).reciprocal()) @ self.sum_KD
        return self.moment_DD - between_DD


def check_sums(sums: ClassSums, label_space: int, announced_K: Sequence[int]) -> None:
    """Refuse sums that unit features of the announced examples cannot have.

    Args:
        announced_K: number of examples of each class that the sender announced.

    Raises:
        ProtocolError: the classes are not those of the run, a count is negative or larger than announced, or a sum
        is
            longer than its count (unit features cannot add up to more).
        UnusableValuesError: values that are not finite.
    """
    if sums.count_K.shape[0] != label_space:
        _refuse(f"{sums.count_K.shape[0]} classes instead of the run's {label_space}")
    beyond_K = (sums.count_K < 0) | (sums.count_K > torch.tensor(announced_K, dtype=torch.int64))
    if beyond_K.any():
        c = int(beyond_K.nonzero()[0])
        _refuse(f"{int(sums.count_K[c])} examples of class {c}, but {announced_K[c]} were announced")
    given = [sums.sum_KD] if sums.moment_DD is None else [sums.sum_KD, sums.moment_DD]
    if not all(torch.isfinite(each).all() for each in given):
        raise UnusableValuesError("class sums with values that are not finite")
    norm_K = torch.linalg.vector_norm(sums.sum_KD, dim=1)
    too_long_K = norm_K > sums.count_K * (1 + NORM_SLACK) + NORM_SLACK
    if too_long_K.any():
        c = int(too_long_K.nonzero()[0])
        _refuse(f"a sum of length {norm_K[c].item():.6g} for the {int(sums.count_K[c])} examples of class {c}")
    if sums.moment_DD is not None:
        _check_moment(sums, sums.moment_DD)


def _check_moment(sums: ClassSums, moment_DD: Tensor) -> None:
    """The squares of n unit features add up to at most n, and the variance in every direction is at least 0."""
    examples, square = int(sums.count_K.sum()), moment_DD.trace().item()
    # A feature of length 1 is rounded by at most e, so its square, as a matrix, changes by at most 2 e + e^2 in
    # any direction. The sum is sent as float32. An honest sender needs this slack if all its features are the
    # same.
    e = math.sqrt(len(moment_DD)) * 2.0 ** (-MOMENT_GRID_BITS // 2 - 1)
    slack = examples * (2 * e + e * e + (1 / STEPS if sums.coarse else 2.0**-24))
    if square > examples * (1 + NORM_SLACK) + slack:
        _refuse(f"squares that add up to {square:.6g} for {examples} examples")
    shifted_DD = sums.scatter_DD + (slack + NORM_SLACK) * torch.eye(len(moment_DD))
    if torch.linalg.cholesky_ex(shifted_DD).info:
        _refuse("second moments that are impossible for these class sums")


@dataclass(frozen=True, eq=False)
class ClassMemory:
    """One global vector per class; never changed in place.

    Its width is that of the features it was made from, which may differ from the frame's: a task that rehearses
    keeps unit vectors from before the projection and projects them again at each step.

    Attributes:
        mean_KD: float32; not renormalised, so that its length (at most 1) shows how concentrated the class is.
        seen_K: bool, classes that a client has had; the rows of the others are zero.
        metric_DD: float32, the metric for distances between features and classes: the inverse covariance of
            features around their class means (`covariance.py`). None until it is known, or if nothing needs it.
        ridge_KD, ridge_K: float32, weights and intercepts of the ridge regression from features to classes
            (`ridge.py`). None until they are known, or if the read-out does not use them.
    """

    mean_KD: Tensor
    seen_K: Tensor
    metric_DD: Tensor | None = None
    ridge_KD: Tensor | None = None
    ridge_K: Tensor | None = None

    @classmethod
    def empty(cls, label_space: int, dim: int) -> ClassMemory:
        """A memory in which no class has been seen."""
        return cls(mean_KD=torch.zeros(label_space, dim), seen_K=torch.zeros(label_space, dtype=torch.bool))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ClassMemory:
        """The memory from the result of `to_tensors`. Raises ProtocolError for wrong names, types or shapes."""
        types = {"mean_KD": torch.float32, "seen_K": torch.bool}
        types |= {name: torch.float32 for name in OPTIONAL if name in tensors}
        return cls(**_checked(tensors, "class memory", types))

    def to_tensors(self) -> dict[str, Tensor]:
        """By name, to send and for checkpoints."""
        more = {name: value for name in OPTIONAL if (value := getattr(self, name)) is not None}
        return {"mean_KD": self.mean_KD, "seen_K": self.seen_K, **more}

    def update(self, sums: ClassSums, momentum: float, ridge: float = 0.0) -> ClassMemory:
        """v <- w for a class that is new, else momentum v + (1 - momentum) w, where w is the mean in `sums`.

        Classes without examples in `sums` keep their vector exactly. The metric is computed from `sums` alone, or
        kept if they do not determine one. It needs several examples for each of its D dimensions.

        Args:
            ridge: the strength with which the ridge regression is computed, also from `sums` alone; 0: not at all.
        """
        held_K, examples = sums.count_K > 0, int(sums.count_K.sum())
        freedom = examples - int(held_K.sum())
        says_nothing = sums.moment_DD is None or freedom < 1
        keep_K1 = momentum * self.seen_K.double().unsqueeze(1)
        moved_KD = keep_K1 * self.mean_KD.double() + (1 - keep_K1) * sums.mean_KD
        regression = (self.ridge_KD, self.ridge_K)
        if ridge and sums.moment_DD is not None and examples:
            regression = ridge_regression(sums.sum_KD, sums.count_K, sums.moment_DD, ridge)
        return replace(
            self,
            ridge_KD=regression[0],
            ridge_K=regression[1],
            mean_KD=torch.where(held_K.unsqueeze(1), moved_KD.float(), self.mean_KD),
            seen_K=self.seen_K | held_K,
            metric_DD=self.metric_DD if says_nothing else inverse_covariance(sums.scatter_DD / examples, freedom),
        )


def on_grid(value: Tensor, bits: int) -> Tensor:
    """Round to multiples of 2^-bits."""
    return torch.round(value * 2.0**bits) * 2.0**-bits


def _refuse(what: str) -> NoReturn:
    raise ProtocolError(f"class sums with {what}: this client's update is not used")


def _triangle(moment_DD: Tensor) -> Tensor:
    upper, across = torch.triu_indices(*moment_DD.shape)
    return moment_DD[upper, across]


def _correlations(moment_DD: Tensor) -> dict[str, Tensor]:
    """The coarse form: M_ij / (s_i s_j) in steps of 1 / `STEPS`, and s_i = sqrt(M_ii)."""
    scale_D = moment_DD.diagonal().clamp(min=0).sqrt().float()
    share_DD = moment_DD / torch.outer(scale_D, scale_D).double().clamp(min=torch.finfo(torch.float64).tiny)
    steps_DD = torch.round(share_DD * STEPS).clamp(-STEPS, STEPS)
    return {"moment_T": _triangle(steps_DD).to(torch.int16), "scale_D": scale_D}


def _square(moment_T: Tensor, dim: int) -> Tensor:
    upper, across = torch.triu_indices(dim, dim)
    moment_DD = moment_T.new_zeros(dim, dim)
    moment_DD[upper, across] = moment_DD[across, upper] = moment_T
    return moment_DD


def _checked(tensors: Mapping[str, Tensor], what: str, types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """`tensors`, if they have exactly these names and types and matching shapes; a name's end says its shape."""
    given = {name: (value.dtype, list(value.shape)) for name, value in tensors.items()}
    _, matrix = given.get(next(iter(types)), (None, []))  # [K, D], the first of the names
    labels, dim = (*matrix, 0, 0)[:2]
    shape_of = {"KD": [labels, dim], "K": [labels], "D": [dim], "DD": [dim, dim], "T": [dim * (dim + 1) // 2]}
    expected = {name: (dtype, shape_of[name.rpartition("_")[2]]) for name, dtype in types.items()}
    if given != expected:
        raise ProtocolError(
            f"not a {what}: given {given}, expected a matrix [K, D] and a vector [K] with types {types}. "
            "Update both sides to the same version of fednc."
        )
    return dict(tensors)
