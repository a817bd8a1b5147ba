"""Replacements for the class memory (`method.memory_source`): controls that show what the memory is worth.

The server uses them for everything that it broadcasts and reads out, clients for `own`. A control has the same
schedule and weight as the memory: the same classes count as seen, and the same loss terms use it. Must not know
tasks.

Legend: K label space, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fednc.common import seeds
from fednc.common.learning.class_memory import OPTIONAL, ClassMemory, ClassSums
from fednc.common.learning.frame import unit
from fednc.common.learning.round_context import Guide


@dataclass(frozen=True, kw_only=True)
class Memories:
    """The class memory, and what the controls need besides.

    Attributes:
        real: the current memory over all clients that took part.
        early: the memory as it was at the end of the warm-up.
        single: a current memory in which each class comes from a single client that has it.
    """

    real: ClassMemory
    early: ClassMemory
    single: ClassMemory

    @classmethod
    def all_from(cls, memory: ClassMemory) -> Self:
        """Start with the same memory for all three."""
        return cls(real=memory, early=memory, single=memory)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Read the result of `to_tensors`; ignores other tensors. Raises ProtocolError if there is no memory."""
        found = {
            name: {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            for name in ("memory", "early", "single")
        }
        real = ClassMemory.from_tensors(found["memory"])
        early, single = (ClassMemory.from_tensors(found[n]) if found[n] else real for n in ("early", "single"))
        return cls(real=real, early=early, single=single)

    def to_tensors(self, source: str) -> dict[str, Tensor]:
        """By name, for checkpoints: what a run with this `method.memory_source` needs to continue."""
        kept = {"memory": self.real} | ({"early": self.early} if source == "stale" else {})
        kept |= {"single": self.single} if source == "own" else {}
        return {f"{name}.{key}": value for name, one in kept.items() for key, value in one.to_tensors().items()}

    def updated(self, pool: Pool, momentum: float, *, warming_up: bool, ridge: float = 0.0) -> Self:
        """The memories after the sums of a round. The first memory counts as early even after the warm-up.

        `ridge`: see `ClassMemory.update`.
        """
        real = self.real.update(pool.all, momentum, ridge)
        early = real if warming_up or not self.early.seen_K.any() else self.early
        return replace(self, real=real, early=early, single=self.single.update(pool.one, momentum))

    def under(self, source: str, etf_KD: Tensor, seed: int) -> ClassMemory:
        """The memory to use everywhere under `method.memory_source` = `source`.

        Args:
            etf_KD: the frame.
            seed: the run's seed. It determines the derangement and the random vectors, the same in all rounds.
        """
        if source == "memory":
            return self.real
        if source == "stale":
            return self.early
        if source == "own":
            return replace(self.single, **{name: getattr(self.real, name) for name in OPTIONAL})
        stand_in_KD = {
            "vertex": etf_KD,
            "shuffled": _shuffled(self.real, seed),
            "random": _random(self.real, seed),
        }
        return replace(self.real, mean_KD=torch.where(self.real.seen_K[:, None], stand_in_KD[source], 0.0))


class Pool:
    """Collects class sums in any order: of all clients together, and for each class from one client that has it.

    That client is the first one in an order of all nodes drawn from `seed`, so it stays the same while it takes
    part.
    """

    def __init__(
        self, label_space: int, dim: int, seed: int, *, moment: bool = False, exact: bool = False
    ) -> None:
        self.all = ClassSums.zeros(label_space, dim, moment=moment, exact=exact)
        self.one = ClassSums.zeros(label_space, dim)
        self._seed, self._rank_K = seed, torch.full((label_space,), torch.iinfo(torch.int64).max)

    def add(self, sums: ClassSums, node: int) -> None:
        """Add the sums of one client."""
        self.all.merge(sums)
        rank = seeds.derive(self._seed, "holder", node)
        first_K = (sums.count_K > 0) & (rank < self._rank_K)
        self._rank_K[first_K] = rank
        self.one.sum_KD[first_K], self.one.count_K[first_K] = sums.sum_KD[first_K], sums.count_K[first_K]


def with_own_means(guide: Guide, sums: ClassSums) -> Guide:
    """`guide` with a client's own class means as memory, for `own`; only for seen classes that the client has."""
    own_K = guide.seen_K & (sums.count_K > 0).to(guide.seen_K.device)
    mean_KD = sums.mean_KD.to(guide.mean_KD)
    return replace(guide, mean_KD=torch.where(own_K[:, None], mean_KD, 0.0), seen_K=own_K)


def _shuffled(memory: ClassMemory, seed: int) -> Tensor:
    """Give each seen class the vector of the next one, in a fixed random order of all classes."""
    order_K = torch.randperm(len(memory.seen_K), generator=seeds.generator(seed, "derangement"))
    order_S = order_K[memory.seen_K[order_K]]
    mean_KD = memory.mean_KD.clone()
    mean_KD[order_S] = memory.mean_KD[order_S.roll(-1)]
    return mean_KD


def _random(memory: ClassMemory, seed: int) -> Tensor:
    draw = torch.randn(memory.mean_KD.shape, generator=seeds.generator(seed, "random-memory"))
    length_K1: Tensor = torch.linalg.vector_norm(memory.mean_KD, dim=1, keepdim=True)
    return unit(draw) * length_K1
