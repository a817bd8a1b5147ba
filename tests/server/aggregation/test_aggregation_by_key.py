"""Means over owners, of angles, and beside ordinary ones: the same bits in any order, and the right value.

Legend: C clients.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.wire import arrays
from fednc.server.aggregation.mean import Fold
from fednc.server.aggregation.outliers import OutlierGuard
from fednc.server.aggregation.robust_mean import RobustMean

REFERENCE = {
    "plain": torch.zeros(5),
    "lane.weight": torch.full((3,), 7.0),
    "lane.bias": torch.full((2,), 7.0),
    "angle": torch.tensor([0.1, 3.0, -3.0, 1.0]),
    "wide_angle": torch.zeros(9000, dtype=torch.float64),
}


def aggregation(key: str) -> Aggregation:
    if key.startswith("lane."):
        return Aggregation.OWNERS
    return Aggregation.CIRCULAR if key.endswith("angle") else Aggregation.MEAN


Update = tuple[dict[str, Tensor], int, dict[str, int]]


def drawn(seed: int, clients: int) -> list[Update]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(clients):
        tensors = {
            key: torch.randn(value.shape, generator=draw, dtype=value.dtype) * 2
            for key, value in REFERENCE.items()
        }
        weight = int(torch.randint(2, 500, (), generator=draw))
        owned = {
            key: int(torch.randint(1, weight + 1, (), generator=draw))
            for key in ("lane.weight", "lane.bias")
            if torch.rand((), generator=draw) < 0.6
        }
        found.append((tensors, weight, owned))
    return found


def folded(updates: list[Update]) -> Fold:
    fold = Fold(REFERENCE, aggregation=aggregation)
    fold.start(REFERENCE, [weight for _, weight, _ in updates])
    for tensors, weight, owned in updates:
        fold.add(arrays.to_record(tensors), weight, owned)
    return fold


def mean_of(updates: list[Update], through: Any = None) -> dict[str, Tensor]:
    if through is None:
        return arrays.from_record(folded(updates).mean())
    fold = Fold(REFERENCE, aggregation=aggregation)
    fold.start(REFERENCE, [weight for _, weight, _ in updates])
    mean = through(fold)
    for node, (tensors, weight, owned) in enumerate(updates):
        mean.add(node, arrays.to_record(tensors), weight, owned)
    if isinstance(mean, RobustMean):
        return arrays.from_record(mean.mean())
    mean.settle()
    return arrays.from_record(fold.mean())


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in REFERENCE)


def turns_apart(one: Tensor, other: Tensor) -> float:
    """Largest distance of two angles on the circle."""
    return float(torch.remainder(one.double() - other.double() + math.pi, 2 * math.pi).sub(math.pi).abs().max())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6), data=st.data())
def test_any_order_gives_the_same_bits(seed: int, clients: int, data: st.DataObject) -> None:
    updates = drawn(seed, clients)
    assert same_bits(mean_of(updates), mean_of(data.draw(st.permutations(updates))))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
def test_a_masked_mean_is_the_mean_over_the_owners(seed: int, clients: int) -> None:
    updates = drawn(seed, clients)
    found = mean_of(updates)
    for key in ("lane.weight", "lane.bias"):
        owners = [(tensors[key].double(), owned[key]) for tensors, _, owned in updates if key in owned]
        if not owners:
            assert torch.equal(found[key], REFERENCE[key])  # nobody trained it: it stays
            continue
        exactly = sum(value * weight for value, weight in owners) / sum(weight for _, weight in owners)
        torch.testing.assert_close(found[key].double(), exactly, atol=1e-6, rtol=0)
    weights = sum(weight for _, weight, _ in updates)
    exactly = sum(tensors["plain"].double() * weight for tensors, weight, _ in updates) / weights
    torch.testing.assert_close(found["plain"].double(), exactly, atol=1e-6, rtol=0)


def test_values_of_a_tensor_that_the_sender_did_not_train_do_not_count() -> None:
    updates = drawn(3, 4)
    updates[0] = (updates[0][0], updates[0][1], {})
    other = {**updates[0][0], "lane.weight": torch.full((3,), 1e4)}
    assert same_bits(mean_of(updates), mean_of([(other, updates[0][1], {}), *updates[1:]]))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
def test_an_update_may_leave_out_what_its_sender_did_not_train(seed: int, clients: int) -> None:
    updates = drawn(seed, clients)
    less = [
        ({key: value for key, value in tensors.items() if not key.startswith("lane.") or key in owned}, *rest)
        for tensors, *rest in updates
        for owned in rest[1:]
    ]
    for through in (None, lambda fold: RobustMean(fold, "clip", 0.2), lambda fold: RobustMean(fold, "trim", 0.2)):
        assert same_bits(mean_of(less, through), mean_of(updates, through))  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["lane.weight", "plain"])
def test_an_update_must_have_what_its_sender_says_it_trained(missing: str) -> None:
    tensors, weight, _ = drawn(0, 1)[0]
    del tensors[missing]
    fold = Fold(REFERENCE, aggregation=aggregation)
    fold.start(REFERENCE, [weight])
    with pytest.raises(ProtocolError, match=missing):
        fold.add(arrays.to_record(tensors), weight, {"lane.weight": weight})


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6), turns=st.integers(-2, 2))
def test_a_mean_of_angles_does_not_see_whole_turns(seed: int, clients: int, turns: int) -> None:
    updates = drawn(seed, clients)
    turned = {**updates[0][0], "wide_angle": updates[0][0]["wide_angle"] + 2 * math.pi * turns}
    one, other = mean_of(updates), mean_of([(turned, *updates[0][1:]), *updates[1:]])
    short = _resultant(updates, "wide_angle") > 1e-3
    assert turns_apart(one["wide_angle"][short], other["wide_angle"][short]) < 1e-8


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6), by=st.floats(-7, 7))
def test_a_mean_of_angles_turns_with_them(seed: int, clients: int, by: float) -> None:
    updates = drawn(seed, clients)
    turned = [({**tensors, "wide_angle": tensors["wide_angle"] + by}, *rest) for tensors, *rest in updates]
    one, other = mean_of(updates), mean_of(turned)  # type: ignore[arg-type]
    clear = _resultant(updates, "wide_angle") > 1e-3
    assert turns_apart(one["wide_angle"][clear] + by, other["wide_angle"][clear]) < 1e-6


def _resultant(updates: list[Update], key: str) -> Tensor:
    weights = sum(weight for _, weight, _ in updates)
    sums = sum(weight * torch.polar(torch.ones_like(t[key]).double(), t[key].double()) for t, weight, _ in updates)
    return (sums / weights).abs()  # type: ignore[union-attr]


def test_a_mean_of_angles_is_that_of_directions_and_stays_near_the_reference() -> None:
    updates = drawn(5, 5)
    found = mean_of(updates)["angle"].double()
    sums = sum(weight * torch.polar(torch.ones(4).double(), t["angle"].double()) for t, weight, _ in updates)
    assert turns_apart(found, torch.angle(sums)) < 1e-6  # type: ignore[arg-type]
    assert float((found - REFERENCE["angle"]).abs().max()) <= math.pi + 1e-6


def test_opposite_angles_leave_the_reference_unchanged() -> None:
    tensors = drawn(0, 1)[0][0]
    half = {**tensors, "angle": tensors["angle"] + math.pi}
    found = mean_of([({**tensors, "wide_angle": torch.zeros(9000).double()}, 4, {}), (half, 4, {})])["angle"]
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("through", ["clip", "trim", "guard"])
def test_robust_means_know_owners_and_angles(through: str) -> None:
    updates = drawn(8, 6)
    for tensors, _, owned in updates[:3]:
        owned.clear()  # so that the median over all would be 0
        tensors["lane.weight"] = REFERENCE["lane.weight"].clone()
    make = {
        "clip": lambda fold: RobustMean(fold, "clip", 0.2),
        "trim": lambda fold: RobustMean(fold, "trim", 0.2),
        "guard": lambda fold: OutlierGuard(fold, ratio=5.0, asked=6),
    }[through]
    found = mean_of(updates, make)
    owners = [tensors["lane.weight"] for tensors, _, owned in updates if "lane.weight" in owned]
    if owners:
        assert not torch.equal(found["lane.weight"], REFERENCE["lane.weight"])
        stacked = torch.stack(owners)
        assert bool(
            (found["lane.weight"] <= torch.maximum(stacked.amax(0), REFERENCE["lane.weight"]) + 1e-5).all()
        )
    assert same_bits(found, mean_of(updates, make))


def test_an_update_that_is_taken_back_leaves_no_trace() -> None:
    first, second = drawn(1, 2)
    fold = folded([first, second])
    fold.remove(arrays.to_record(second[0]), second[1], second[2])
    alone = arrays.from_record(fold.mean())
    other = Fold(REFERENCE, aggregation=aggregation)
    other.start(REFERENCE, [first[1], second[1]])
    other.add(arrays.to_record(first[0]), first[1], first[2])
    assert same_bits(alone, arrays.from_record(other.mean()))
    assert fold.alike == other.alike


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_values_that_are_not_angles_are_refused(value: float) -> None:
    tensors, weight, owned = drawn(0, 1)[0]
    fold = Fold(REFERENCE, aggregation=aggregation)
    fold.start(REFERENCE, [weight])
    record: ArrayRecord = arrays.to_record({**tensors, "angle": torch.tensor([0.0, value, 0.0, 0.0])})
    with pytest.raises(UnusableValuesError, match="angles"):
        fold.add(record, weight, owned)


def test_a_weight_beyond_the_senders_examples_is_refused() -> None:
    tensors, weight, _ = drawn(0, 1)[0]
    fold = Fold(REFERENCE, aggregation=aggregation)
    fold.start(REFERENCE, [weight])
    with pytest.raises(ProtocolError, match="beyond"):
        fold.add(arrays.to_record(tensors), weight, {"lane.bias": weight + 1})


# ---- how alike updates are ----------------------------------------------------------------------------------

LANES = frozenset(key for key in REFERENCE if key.startswith("lane."))


def alike_of(updates: list[Update]) -> float:
    return folded(updates).alike


def owning(keys: Collection[str], weight: int) -> Update:
    return drawn(weight, 1)[0][0], weight, dict.fromkeys(keys, 1)


@pytest.mark.parametrize("weights", [[7], [3, 50, 200]])
def test_updates_that_train_the_same_tensors_are_all_alike(weights: list[int]) -> None:
    assert alike_of([owning(LANES, weight) for weight in weights]) == 1.0
    assert alike_of([owning(["lane.bias"], weight) for weight in weights]) == 1.0
    assert alike_of([owning((), weight) for weight in weights]) == 1.0


@pytest.mark.parametrize("each", [1, 4])
def test_groups_of_clients_with_different_tensors_are_one_by_their_number_alike(each: int) -> None:
    updates = [owning([key], 30) for key in ("lane.weight", "lane.bias") for _ in range(each)]
    assert alike_of(updates) == pytest.approx(1 / 2)


def test_how_alike_updates_are_is_a_mean_over_them_in_any_order() -> None:
    updates = drawn(4, 7)
    total = sum(weight for _, weight, _ in updates)
    pairs = [(weight, key) for _, weight, owned in updates for key in owned]
    share = {key: sum(weight for weight, each in pairs if each == key) / total for key in LANES}
    expected = sum(weight * share[key] for weight, key in pairs) / sum(weight for weight, _ in pairs)
    assert alike_of(updates) == pytest.approx(expected)
    assert alike_of(updates[::-1]) == alike_of(updates)
