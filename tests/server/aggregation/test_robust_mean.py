"""Means that a minority cannot pull far, and outliers that are subtracted: in any order, to the last bit.

Legend: C contributors, N values.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import UnusableValuesError
from fednc.common.wire import arrays
from fednc.server.aggregation.mean import Fold
from fednc.server.aggregation.outliers import OutlierGuard
from fednc.server.aggregation.robust_mean import RobustMean, mean_of_nearest

Update = tuple[int, dict[str, Tensor], int]  # node, tensors, weight
REFERENCE = {
    "w": torch.ones(40),
    "b": torch.zeros(3),
    "steps": torch.tensor(4),
    "control/w": torch.full((40,), 0.5),
}
EXTRA = ["control/w"]


def honest(count: int, seed: int = 0) -> list[Update]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            node,
            {
                "w": REFERENCE["w"] + 0.1 * torch.randn(40, generator=draw),
                "b": 0.1 * torch.randn(3, generator=draw),
                "steps": torch.tensor(5),
                "control/w": 0.1 * torch.randn(40, generator=draw),
            },
            10 + node,
        )
        for node in range(count)
    ]


def larger(update: Update, times: float) -> Update:
    """The same change, that many times as large."""
    node, tensors, weight = update
    changed = dict(tensors)
    for key in ("w", "b"):
        changed[key] = REFERENCE[key] + times * (tensors[key] - REFERENCE[key])
    return node, changed, weight


def guarded(updates: list[Update], ratio: float = 5.0) -> tuple[dict[str, Tensor], list, Fold]:
    fold = Fold(REFERENCE, EXTRA)
    fold.start(REFERENCE, [weight for _, _, weight in updates])
    guard = OutlierGuard(fold, ratio=ratio, asked=len(updates))
    for node, tensors, weight in updates:
        guard.add(node, arrays.to_record(tensors), weight)
    found = guard.settle()
    return arrays.from_record(fold.mean()), found, fold


def robust(updates: list[Update], kind: str, share: float = 0.2) -> dict[str, Tensor]:
    fold = Fold(REFERENCE, EXTRA)
    fold.start(REFERENCE, [weight for _, _, weight in updates])
    mean = RobustMean(fold, kind, share)
    for node, tensors, weight in updates:
        mean.add(node, arrays.to_record(tensors), weight)
    return arrays.from_record(mean.mean())


def plain(updates: list[Update], weights: list[int] | None = None) -> dict[str, Tensor]:
    fold = Fold(REFERENCE, EXTRA)
    fold.start(REFERENCE, weights or [weight for _, _, weight in updates])
    for _, tensors, weight in updates:
        fold.add(arrays.to_record(tensors), weight)
    return arrays.from_record(fold.mean())


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in REFERENCE)


# ---- outliers ----------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 2**16), st.data())
def test_a_subtracted_update_leaves_no_trace(count: int, seed: int, data: st.DataObject) -> None:
    updates = honest(count, seed)
    gone = data.draw(st.sampled_from(updates))
    fold = Fold(REFERENCE, EXTRA)
    weights = [weight for _, _, weight in updates]
    fold.start(REFERENCE, weights)
    for _, tensors, weight in data.draw(st.permutations(updates)):
        fold.add(arrays.to_record(tensors), weight)
    fold.remove(arrays.to_record(gone[1]), gone[2])
    rest = [update for update in updates if update is not gone]
    assert same_bits(arrays.from_record(fold.mean()), plain(rest, weights))


def test_ordinary_updates_are_averaged_as_without_the_check() -> None:
    updates = [larger(update, times) for update, times in zip(honest(6), (1, 2, 0.1, 3, 1, 1), strict=True)]
    mean, found, _ = guarded(updates)
    assert found == []
    assert same_bits(mean, plain(updates))


@given(st.permutations(range(6)), st.floats(150, 3000))
def test_an_extreme_update_counts_as_if_it_had_never_come(order: list[int], times: float) -> None:
    updates = honest(6)
    updates[2] = larger(updates[2], times)
    mean, found, fold = guarded([updates[index] for index in order])
    assert [(outlier.node, outlier.is_left_out) for outlier in found] == [(2, True)]
    rest = [update for update in updates if update[0] != 2]
    assert same_bits(mean, plain(rest, [weight for _, _, weight in updates]))
    assert fold.updates == 5


@given(st.floats(8, 40), st.permutations(range(6)))
def test_the_larger_an_update_the_less_it_moves_the_mean(times: float, order: list[int]) -> None:
    updates = honest(6)
    updates[2] = larger(updates[2], times)
    mean, found, _ = guarded([updates[index] for index in order])
    assert [outlier.is_left_out for outlier in found] == [False]
    assert same_bits(mean, guarded(updates)[0])
    # A change of at most the median norm, of one update in six.
    usual = sorted(float((u[1]["w"] - REFERENCE["w"]).norm()) for u in honest(6))[-1]
    rest = plain([update for update in updates if update[0] != 2], [weight for _, _, weight in updates])
    assert float((mean["w"] - rest["w"]).norm()) <= (usual + float((rest["w"] - REFERENCE["w"]).norm())) / 5


def test_an_outlier_in_the_control_variates_alone_is_found() -> None:
    updates = honest(5)
    updates[1][1]["control/w"] *= 100
    assert [outlier.node for outlier in guarded(updates)[1]] == [1]


def test_control_variates_are_compared_with_each_other_whatever_the_size_of_the_model_changes() -> None:
    updates = [larger(update, 50) for update in honest(5)]
    for _, tensors, _ in updates:
        tensors["control/w"] *= 0.001
    updates[1][1]["control/w"] *= 30
    assert [outlier.node for outlier in guarded(updates)[1]] == [1]


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_updates_have_no_outliers(count: int) -> None:
    updates = honest(count)
    updates[0] = larger(updates[0], 1000)
    assert guarded(updates)[1] == []


def test_a_median_of_zero_finds_no_outliers() -> None:
    still = [(node, dict(REFERENCE), weight) for node, _, weight in honest(4)]
    still[0] = honest(1)[0]
    assert guarded(still)[1] == []


def test_zero_allows_any_size() -> None:
    updates = honest(4)
    updates[0] = larger(updates[0], 1000)
    assert guarded(updates, ratio=0)[1] == []


# ---- robust means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "trim"])
@settings(max_examples=20)
@given(order=st.permutations(range(7)))
def test_any_order_gives_the_same_bits(kind: str, order: list[int]) -> None:
    updates = honest(7)
    assert same_bits(robust([updates[index] for index in order], kind), robust(updates, kind))


@pytest.mark.parametrize("kind", ["clip", "trim"])
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_updates_have_the_ordinary_mean(kind: str, count: int) -> None:
    assert same_bits(robust(honest(count), kind), plain(honest(count)))


@pytest.mark.parametrize("kind", ["clip", "trim"])
@pytest.mark.parametrize("times", [-100.0, -10.0, 100.0])
def test_two_of_ten_cannot_pull_the_mean_far(kind: str, times: float) -> None:
    updates = honest(10)
    centre = plain(updates[:8])
    spread = max(float((tensors["w"] - centre["w"]).norm()) for _, tensors, _ in updates)
    hostile = [*updates[:8], *(larger(update, times) for update in updates[8:])]
    assert float((robust(hostile, kind)["w"] - centre["w"]).norm()) < spread / 2
    assert float((plain(hostile)["w"] - centre["w"]).norm()) > spread


def test_clipping_bounds_each_tensor_by_the_median_norm() -> None:
    updates = honest(5)
    updates[0] = larger(updates[0], 50)
    mean = robust(updates, "clip")
    norms = sorted(float((tensors["w"] - REFERENCE["w"]).norm()) for _, tensors, _ in updates)
    assert float((mean["w"] - REFERENCE["w"]).norm()) <= norms[2]


def test_equal_updates_have_their_mean_under_every_kind() -> None:
    one = honest(1)[0][1]
    same = [(node, one, 7) for node in range(5)]
    for kind in ("clip", "trim"):
        for key, value in robust(same, kind).items():
            torch.testing.assert_close(value, one[key])


@given(st.integers(3, 9), st.integers(1, 3), st.integers(0, 2**16))
def test_the_nearest_updates_are_those_that_a_plain_loop_finds(count: int, dropped: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    dropped = min(dropped, (count - 1) // 2)
    rows, weights = draw.standard_normal((count, 11)), draw.integers(1, 9, count).astype(float)
    middle = np.median(rows, axis=0)
    kept = sorted(range(count), key=lambda c: math.fsum((rows[c] - middle) ** 2))[: count - dropped]
    expected = sum(weights[c] * rows[c] for c in kept) / sum(weights[c] for c in kept)
    np.testing.assert_allclose(mean_of_nearest(list(rows), weights, dropped), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["clip", "trim"])
def test_values_that_are_not_finite_are_refused_at_once(kind: str) -> None:
    fold = Fold(REFERENCE, EXTRA)
    fold.start(REFERENCE, [10, 10, 10])
    node, tensors, weight = honest(1)[0]
    tensors["w"][3] = math.nan
    record: ArrayRecord = arrays.to_record(tensors)
    with pytest.raises(UnusableValuesError, match="'w' contains nan"):
        RobustMean(fold, kind, 0.2).add(node, record, weight)
