"""Class memory: exact merge in any order and partition, moving average, refusals, streamed drift.

Legend: N examples, K label space, D feature width.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.learning.class_drift import DriftSums
from fednc.common.learning.class_memory import STEPS, ClassMemory, ClassSums, check_sums
from support.class_sums import D, K, examples, sums_of


def identical(a: ClassSums, b: ClassSums) -> bool:
    moments = a.moment_DD is not None and b.moment_DD is not None and torch.equal(a.moment_DD, b.moment_DD)
    return torch.equal(a.sum_KD, b.sum_KD) and torch.equal(a.count_K, b.count_K) and moments


def constant_sums(**vectors: float) -> ClassSums:
    """One example with a constant vector for each class given as c0=..., c1=..."""
    sums = ClassSums.zeros(K, D)
    for name, value in vectors.items():
        sums.add_batch(torch.full((1, D), value), torch.tensor([int(name[1:])]))
    return sums


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 10**6))
def test_merged_sums_equal_pooled_data_bit_for_bit_in_any_partition_and_order(count, clients, seed):
    feat_ND, label_N = examples(count, seed)
    g = torch.Generator().manual_seed(seed + 1)
    owner_N = torch.randint(clients, (count,), generator=g)
    parts = [sums_of(feat_ND[owner_N == k], label_N[owner_N == k]) for k in range(clients)]
    merged = ClassSums.zeros(K, D, moment=True)
    for k in torch.randperm(clients, generator=g).tolist():
        merged.merge(parts[k])
    assert identical(merged, sums_of(feat_ND, label_N))


def test_twenty_orders_of_many_clients_give_identical_bits():
    """Sums of size 1e4 off the grid, as after added noise: a plain float64 sum differs between orders here."""
    g = torch.Generator().manual_seed(0)
    parts = [
        ClassSums(
            sum_KD=1e4 * torch.randn(K, D, dtype=torch.float64, generator=g),
            count_K=torch.ones(K, dtype=torch.int64),
            moment_DD=1e4 * torch.randn(D, D, dtype=torch.float64, generator=g),
        )
        for _ in range(300)
    ]
    orders = [torch.randperm(300, generator=g).tolist() for _ in range(20)]
    results, naive = [], []
    for order in orders:
        total = ClassSums.zeros(K, D, moment=True)
        for k in order:
            total.merge(parts[k])
        results.append(total)
        naive.append(sum(parts[k].sum_KD for k in order))
    assert all(identical(results[0], other) for other in results[1:])
    assert not all(torch.equal(naive[0], other) for other in naive[1:])


def test_means_are_those_of_the_data_to_float32():
    feat_ND, label_N = examples(200, seed=4)
    sums = sums_of(feat_ND, label_N)
    for c in range(K - 1):
        wanted_D = feat_ND[label_N == c].double().mean(dim=0)
        torch.testing.assert_close(sums.mean_KD[c], wanted_D, atol=2**-25, rtol=0)
    assert torch.equal(sums.mean_KD[K - 1], torch.zeros(D, dtype=torch.float64))
    assert torch.equal(sums.count_K, torch.bincount(label_N, minlength=K))


def test_plus_does_not_change_its_operands():
    a, b = (sums_of(*examples(20, seed)) for seed in (0, 1))
    before = sums_of(*examples(20, 0))
    total = a + b
    assert identical(a, before)
    assert identical(total, b + a)
    assert identical(total, a.merge(b))


def test_labels_of_any_shape():
    feat_ND, label_N = examples(12, seed=2)
    assert identical(sums_of(feat_ND, label_N.reshape(3, 4)), sums_of(feat_ND, label_N))


def test_merge_refuses_another_shape():
    with pytest.raises(ProtocolError, match=r"shape \[5, 3\] instead of \[5, 7\]"):
        ClassSums.zeros(K, D).merge(ClassSums.zeros(K, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_moves_seen_classes_sets_new_ones_keeps_absent_ones(momentum):
    old = ClassMemory.empty(K, D).update(constant_sums(c0=0.25, c1=0.125), momentum)
    new = old.update(constant_sums(c1=-0.25, c2=0.0625), momentum)
    wanted_K = torch.tensor([0.25, momentum * 0.125 + (1 - momentum) * -0.25, 0.0625, 0.0, 0.0])
    torch.testing.assert_close(new.mean_KD, wanted_K[:, None].expand(K, D))
    assert torch.equal(new.mean_KD[0], old.mean_KD[0])
    assert new.seen_K.tolist() == [True, True, True, False, False]
    assert old.seen_K.tolist() == [True, True, False, False, False]
    assert new.mean_KD.dtype == torch.float32


def test_first_memory_is_the_pooled_mean_whatever_the_momentum():
    sums = sums_of(*examples(100, seed=1))
    assert torch.equal(ClassMemory.empty(K, D).update(sums, 0.9).mean_KD, sums.mean_KD.float())


def test_tensors_round_trip():
    sums = ClassSums.from_tensors(sums_of(*examples(30, seed=0)).to_tensors())  # moments are rounded once
    memory = ClassMemory.empty(K, D).update(sums, 0.5)
    assert identical(ClassSums.from_tensors(sums.to_tensors()), sums)
    again = ClassMemory.from_tensors(dict(sorted(memory.to_tensors().items())))  # checkpoints sort names
    assert memory.metric_DD is not None
    assert again.metric_DD is not None
    assert torch.equal(again.metric_DD, memory.metric_DD)
    assert torch.equal(again.mean_KD, memory.mean_KD)
    assert torch.equal(again.seen_K, memory.seen_K)


def coarse_sums(count: int, seed: int) -> tuple[ClassSums, ClassSums]:
    """(sums of so many examples, the same as they arrive if they were sent with 16 bits)"""
    feat_ND, label_N = examples(count, seed)
    feat_ND[:, 0] = 0  # a dimension that no example uses has no correlations
    sums = ClassSums.zeros(K, D, moment=True, coarse=True).add_batch(feat_ND, label_N)
    return sums, ClassSums.from_tensors(sums.to_tensors())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6))
def test_coarse_moments_are_close_accepted_and_half_as_large(count, seed):
    sums, arrived = coarse_sums(count, seed)
    assert torch.equal(arrived.sum_KD, sums.sum_KD)
    assert arrived.coarse
    scale_D = sums.moment_DD.diagonal().sqrt()
    assert ((arrived.moment_DD - sums.moment_DD).abs() <= torch.outer(scale_D, scale_D) / STEPS + 1e-9).all()
    check_sums(arrived, K, sums.count_K.tolist())
    sizes = [
        sum(t.nbytes for n, t in s.to_tensors().items() if n == "moment_T")
        for s in (sums, sums_of(*examples(9, 0)))
    ]
    assert 2 * sizes[0] == sizes[1]


def test_coarse_sums_of_clients_merge_to_the_same_bits_in_any_order():
    parts = [coarse_sums(40, seed)[1] for seed in range(12)]
    ends = []
    for order in (range(12), reversed(range(12)), torch.randperm(12).tolist()):
        total = ClassSums.zeros(K, D, moment=True)
        for k in order:
            total.merge(parts[k])
        ends.append(total)
    assert all(identical(ends[0], end) for end in ends[1:])


def test_a_coarse_metric_is_nearly_the_exact_one():
    sums, arrived = coarse_sums(300, 5)
    metrics = [ClassMemory.empty(K, D).update(one, 0.0).metric_DD for one in (sums, arrived)]
    torch.testing.assert_close(metrics[0], metrics[1], rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("count_K"),
        lambda t: t.update(other=torch.zeros(K)),
        lambda t: t.update(sum_KD=t["sum_KD"].float()),
        lambda t: t.update(count_K=t["count_K"][:-1]),
        lambda t: t.update(sum_KD=t["sum_KD"][0]),
        lambda t: t.update(count_K=t["count_K"].unsqueeze(1)),
        lambda t: t.update(moment_T=t["moment_T"].half()),
        lambda t: t.update(moment_T=t["moment_T"][:-1]),
        lambda t: t.update(moment_T=t["moment_T"].to(torch.int16)),
    ],
    ids=["missing", "extra", "type", "rows", "vector", "matrix", "moment's type", "moment's size", "no scale"],
)
def test_from_tensors_refuses_other_tensors(spoil):
    tensors = sums_of(*examples(30, seed=0)).to_tensors()
    spoil(tensors)
    with pytest.raises(ProtocolError, match="not a class sums"):
        ClassSums.from_tensors(tensors)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.integers(0, 10**6))
def test_honest_sums_pass(count, seed):
    check_sums(sums_of(*examples(count, seed)), K, [count] * K)


def test_identical_features_pass():
    feat_1D, _ = examples(1, seed=0)
    check_sums(sums_of(feat_1D.expand(4096, D), torch.zeros(4096, dtype=torch.int64)), K, [4096] * K)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: s.sum_KD[1].mul_(1e3), "of class 1"),
        (lambda s: s.sum_KD[K - 1].add_(1e-3), f"for the 0 examples of class {K - 1}"),
        (lambda s: s.sum_KD[2, 3].fill_(torch.nan), "not finite"),
        (lambda s: s.sum_KD[2, 3].fill_(torch.inf), "not finite"),
        (lambda s: s.count_K[0].fill_(-3), "-3 examples of class 0"),
        (lambda s: s.count_K[0].add_(1), r"\d+ examples of class 0, but \d+ were announced"),
        (lambda s: s.count_K.fill_(2**62), f"{2**62} examples of class 0"),
        (lambda s: s.moment_DD[0, 0].fill_(torch.nan), "not finite"),
        (lambda s: s.moment_DD[1, 1].fill_(-1.0), "impossible for these class sums"),
        (lambda s: s.moment_DD.mul_(1.1), r"add up to 5\d.* for 50"),
        (lambda s: s.moment_DD.copy_(50 / D * (2 * torch.eye(D) - 1)), "impossible for these class sums"),
    ],
    ids=[
        "too long",
        "unheld",
        "nan",
        "inf",
        "negative",
        "more than declared",
        "huge",
        "moment nan",
        "negative square",
        "squares",
        "nothing varies in a direction",
    ],
)
def test_impossible_sums_are_refused(spoil, reason):
    sums = sums_of(*examples(50, seed=0))
    announced_K = sums.count_K.tolist()
    check_sums(sums, K, announced_K)
    spoil(sums)
    with pytest.raises(ProtocolError, match=reason):
        check_sums(sums, K, announced_K)


def test_another_label_space_is_refused():
    with pytest.raises(ProtocolError, match="4 classes instead of the run's 5"):
        check_sums(ClassSums.zeros(4, D), K, [10] * K)


def test_momentum_acts_in_float64():
    memory = ClassMemory.empty(K, D).update(constant_sums(c0=0.25), 0.0).update(constant_sums(c0=0.0), 0.9)
    assert torch.equal(memory.mean_KD[0], torch.full((D,), 0.9 * 0.25))


def test_drift_without_clients_is_nan():
    assert math.isnan(DriftSums.zeros(K, D).value())


def direct_drift(clients: list[ClassSums]) -> float:
    per_class = []
    for c in range(K):
        means = [s.sum_KD[c] / s.count_K[c] for s in clients if s.count_K[c] > 0]
        if means:
            v_MD = torch.stack(means)
            per_class.append((v_MD - v_MD.mean(dim=0)).square().sum(dim=1).mean())
    return torch.stack(per_class).mean().item()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 10**6))
def test_streamed_drift_is_the_direct_formula_in_any_order(sizes, seed):
    clients = [sums_of(*examples(size, seed + i)) for i, size in enumerate(sizes)]
    forwards, backwards = DriftSums.zeros(K, D), DriftSums.zeros(K, D)
    for sums in clients:
        forwards.add_client(sums)
    for sums in reversed(clients):
        backwards.add_client(sums)
    assert forwards.value() == pytest.approx(direct_drift(clients), abs=1e-8)
    assert forwards.value() == backwards.value()


def test_drift_of_opposite_clients_is_one_and_of_equal_ones_zero():
    e = torch.eye(D)[:1]
    label = torch.zeros(1, dtype=torch.int64)
    opposite = DriftSums.zeros(K, D).add_client(sums_of(e, label)).add_client(sums_of(-e, label))
    equal = (
        DriftSums.zeros(K, D).add_client(sums_of(e, label)).add_client(sums_of(e.expand(9, D), label.expand(9)))
    )
    assert (opposite.value(), equal.value()) == (1.0, 0.0)
