"""Drift alarms, by simulation: false alarms at no more than about the wanted rate, shifted clients found and
named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from fednc.common.learning import drift_alarm
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.drift_alarm import ClientMeans, f_tail
from fednc.common.learning.frame import unit

K, D = 6, 24
NONE = torch.zeros(D)


class World:
    """Classes of unit features, each with a covariance of its own and tails heavier than normal."""

    def __init__(self, seed: int) -> None:
        self.g = torch.Generator().manual_seed(seed)
        self.centre_KD = 2 * unit(torch.randn(K, D, generator=self.g))
        size_K11 = 0.5 + torch.rand(K, 1, 1, generator=self.g)
        self.spread_KDD = torch.randn(K, D, D, generator=self.g) * torch.linspace(1.5, 0.2, D) / D**0.5 * size_K11

    def client(
        self, counts: Sequence[int], shift_D: torch.Tensor = NONE, classes: Sequence[int] = range(K)
    ) -> ClassSums:
        """A client with so many examples of each class, of which `classes` are shifted."""
        label_N = torch.repeat_interleave(torch.arange(K), torch.tensor(counts))
        noise_ND = torch.randn(len(label_N), D, generator=self.g)
        noise_ND = noise_ND / torch.rand(len(label_N), 1, generator=self.g).pow(0.25).clamp(min=0.3)
        shifted_N1 = torch.isin(label_N, torch.tensor(list(classes)))[:, None]
        feat_ND = (
            self.centre_KD[label_N] + (noise_ND[:, None] @ self.spread_KDD[label_N])[:, 0] + shifted_N1 * shift_D
        )
        return ClassSums.zeros(K, D, moment=True).add_batch(unit(feat_ND), label_N)

    def counts(self, clients: int, alpha: float) -> list[list[int]]:
        """Examples of each client and class, divided by Dirichlet(alpha)."""
        share_KC = torch._sample_dirichlet(torch.full((K, clients), alpha), generator=self.g)
        return [[int(n) for n in column] for column in (share_KC * 40 * clients).T]

    def custom(self, size: float) -> torch.Tensor:
        """How an honest client differs from the others, in all directions."""
        return size * torch.randn(D, generator=self.g) / D**0.5

    def direction(self, length: float) -> torch.Tensor:
        return length * unit(torch.randn(1, D, generator=self.g))[0]


def alarms(clients: Sequence[ClassSums], rate: float = 0.01) -> list[int]:
    with ClientMeans(K, D) as means:
        for number, sums in enumerate(clients):
            means.add(sums, number)
        return [each.client for each in means.deviations(rate)]


@pytest.mark.parametrize(("clients", "alpha", "custom"), [(4, 0.3, 0.0), (8, 10.0, 0.3)])
def test_false_alarms_are_about_as_frequent_as_wanted(clients: int, alpha: float, custom: float) -> None:
    """Wanted: 5 %. At most that if clients are alike, at most 1.5 times that if they differ by custom.

    Each case has 240 clients; three standard deviations of their number are allowed on top.
    """
    rate, rounds, told = 0.05, 240 // clients, 0
    for seed in range(rounds):
        world = World(seed)
        drawn = [world.client(counts, world.custom(custom)) for counts in world.counts(clients, alpha)]
        told += len(alarms(drawn, rate))
    total, wanted = clients * rounds, rate * (1.5 if custom else 1.0)
    assert told <= total * wanted + 3 * math.sqrt(total * wanted * (1 - wanted))


@pytest.mark.parametrize(("shift", "custom", "least"), [(1.0, 0.0, 0.95), (2.0, 0.3, 0.9)])
def test_a_shifted_client_is_found_and_nobody_else(shift: float, custom: float, least: float) -> None:
    found, others, rounds = 0, 0, 20
    for seed in range(rounds):
        world = World(seed)
        drawn = [
            world.client(counts, world.custom(custom) + (world.direction(shift) if k == 2 else NONE))
            for k, counts in enumerate(world.counts(5, 3.0))
        ]
        told = alarms(drawn)
        found += 2 in told
        others += len(set(told) - {2})
    assert found >= least * rounds
    assert others <= 0.02 * 4 * rounds + 3


def test_several_shifted_clients_do_not_hide_each_other() -> None:
    others = 0
    for seed in range(5):
        world = World(seed)
        counts = world.counts(8, 10.0)
        far = {1: world.direction(2.0), 5: world.direction(3.0)}
        told = set(alarms([world.client(each, far.get(k, NONE)) for k, each in enumerate(counts)]))
        assert told >= {1, 5}
        others += len(told - {1, 5})
    assert others <= 2


def test_many_alarms_are_those_of_the_farthest_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs two passes over all clients, so without a bound hostile clients could keep the server busy."""
    world = World(3)
    far = {k: world.direction(2.0) for k in range(6)}
    drawn = [world.client([40] * K, far.get(k, NONE)) for k in range(24)]
    found = alarms(drawn)
    assert set(found) >= far.keys()
    monkeypatch.setattr(drift_alarm, "MOST_ALARMS", 4)
    assert alarms(drawn) == found[:4]


def test_the_class_that_is_farthest_away_comes_first() -> None:
    world = World(5)
    drawn = [world.client([40] * K, world.direction(3.0) if k == 0 else NONE, classes=[4]) for k in range(4)]
    with ClientMeans(K, D) as means:
        for number, sums in enumerate(drawn):
            means.add(sums, number)
        (found,) = means.deviations(0.01)
    assert (found.client, found.classes[0]) == (0, 4)
    assert found.cosine < 0.9


def test_the_order_of_clients_changes_nothing() -> None:
    world = World(1)
    drawn = [world.client([30] * K, world.direction(2.0) if k == 3 else NONE) for k in range(5)]
    results = []
    for order in (range(5), reversed(range(5))):
        with ClientMeans(K, D) as means:
            for number in order:
                means.add(drawn[number], number)
            results.append(means.deviations(0.01))
    assert results[0] == results[1]
    assert [each.client for each in results[0]] == [3]


def test_what_cannot_be_judged_raises_no_alarm() -> None:
    world = World(2)
    shift_D = world.direction(4.0)
    pair = [world.client([40] * K, shift_D if k == 0 else NONE) for k in range(2)]
    assert alarms(pair) == [], "of two, nobody knows which one drifted"
    few = [world.client([4] * K, shift_D if k == 0 else NONE) for k in range(6)]
    assert alarms(few) == [], "too few examples of each class"
    apart = [world.client([40 if c == k else 0 for c in range(K)], shift_D) for k in range(K)]
    assert alarms(apart) == [], "no class is held by two clients"
    same = [
        ClassSums.zeros(K, D, moment=True).add_batch(unit(torch.ones(50, D)), torch.zeros(50, dtype=torch.int64))
    ]
    assert alarms(same * 4) == [], "nothing varies"
    copies = [world.client([40] * K)] * 4
    assert alarms(copies) == [], "the same data everywhere"
    assert alarms([*copies, world.client([40] * K, shift_D)]) == [4]
    assert alarms([]) == []


def test_the_tail_of_f_is_that_of_tables() -> None:
    """Critical values from printed tables (Abramowitz and Stegun, table 26.9)."""
    for ratio, above, below, chance in [(3.33, 5, 10, 0.05), (5.64, 5, 10, 0.01), (2.35, 10, 20, 0.05)]:
        assert f_tail(ratio, above, below) == pytest.approx(chance, rel=0.15)
    assert f_tail(1.0, 1000, 1000) == pytest.approx(0.5, abs=0.01)
