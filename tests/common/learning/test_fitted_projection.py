"""The projection in closed form equals regression on the pooled data.

Legend: N examples, K label space, D width of the frame, W width of the features.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.fitted_projection import fitted_projection
from fednc.common.learning.frame import draw_frame, unit

K, D, W = 5, 7, 6
ETF_KD = draw_frame(K, D, seed=3).etf_KD


def pooled(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """(features, labels): classes of different sizes around different means, at least two examples of each."""
    draw = torch.Generator().manual_seed(seed)
    label_N = torch.cat([torch.arange(K).repeat(2), torch.randint(0, K, (examples,), generator=draw).square() % K])
    means_KW = torch.randn(K, W, generator=draw)
    noise_NW = torch.randn(len(label_N), W, generator=draw)
    return unit(means_KW[label_N] + noise_NW), label_N


def within(feat_NW: Tensor, label_N: Tensor, strength: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(class means, covariance within classes plus strength on the diagonal, seen)"""
    mean_KW = torch.stack([feat_NW[label_N == c].double().mean(dim=0) for c in range(K)])
    gap_NW = feat_NW.double() - mean_KW[label_N]
    inside_WW = gap_NW.T @ gap_NW / len(label_N) + strength * torch.eye(W, dtype=torch.float64)
    return mean_KW, inside_WW, torch.ones(K, dtype=torch.bool)


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 200), st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 1.0]))
def test_it_solves_the_ridge_regression_of_balanced_classes(examples, seed, strength):
    mean_KW, inside_WW, seen_K = within(*pooled(examples, seed), strength)
    fitted_DW = fitted_projection(mean_KW, seen_K, inside_WW.inverse(), ETF_KD)
    moment_WW = inside_WW + mean_KW.T @ mean_KW / K
    ridge_DW = torch.linalg.solve(moment_WW, mean_KW.T @ ETF_KD.double() / K).T
    torch.testing.assert_close(fitted_DW, ridge_DW.float(), rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_without_shrinkage_it_is_least_squares_on_the_examples(seed):
    """As many of each class, so that the covariance within classes is the mean of those of all classes."""
    draw = torch.Generator().manual_seed(seed)
    label_N = torch.arange(K).repeat(30)
    feat_NW = unit(torch.randn(K, W, generator=draw)[label_N] + torch.randn(len(label_N), W, generator=draw))
    mean_KW, inside_WW, seen_K = within(feat_NW, label_N)
    fitted_DW = fitted_projection(mean_KW, seen_K, inside_WW.inverse(), ETF_KD)
    solved_WD = torch.linalg.lstsq(feat_NW.double(), ETF_KD[label_N].double()).solution
    torch.testing.assert_close(fitted_DW, solved_WD.T.float(), rtol=1e-3, atol=1e-4)


def memory_of(parts: list[tuple[Tensor, Tensor]]) -> ClassMemory:
    total = ClassSums.zeros(K, W, moment=True)
    for feat_NW, label_N in parts:
        total.merge(ClassSums.zeros(K, W, moment=True).add_batch(feat_NW, label_N))
    return ClassMemory.empty(K, W).update(total, 0.0)


def of_memory(memory: ClassMemory) -> Tensor:
    assert memory.metric_DD is not None
    return fitted_projection(memory.mean_KD, memory.seen_K, memory.metric_DD, ETF_KD)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_any_partition_over_clients_in_any_order_gives_the_same_projection(clients, seed):
    feat_NW, label_N = pooled(60, seed)
    owner_N = torch.randint(clients, (len(label_N),), generator=torch.Generator().manual_seed(seed))
    parts = [(feat_NW[owner_N == k], label_N[owner_N == k]) for k in range(clients)]
    whole = of_memory(memory_of([(feat_NW, label_N)]))
    assert torch.equal(of_memory(memory_of(parts)), of_memory(memory_of(parts[::-1])))
    torch.testing.assert_close(of_memory(memory_of(parts)), whole)


def test_classes_in_another_order_with_their_vertices_give_the_same_projection():
    memory, order_K = memory_of([pooled(80, 4)]), torch.tensor([3, 0, 4, 1, 2])
    assert memory.metric_DD is not None
    again_DW = fitted_projection(memory.mean_KD[order_K], memory.seen_K, memory.metric_DD, ETF_KD[order_K])
    torch.testing.assert_close(again_DW, of_memory(memory))


def test_a_class_that_nobody_has_changes_nothing():
    feat_NW, label_N = pooled(80, 5)
    held_N = label_N != 2
    memory = memory_of([(feat_NW[held_N], label_N[held_N])])
    fitted_DW = of_memory(memory)
    assert fitted_DW.isfinite().all()
    moved = memory.mean_KD.clone()
    moved[2] = 7.0
    assert memory.metric_DD is not None
    torch.testing.assert_close(fitted_projection(moved, memory.seen_K, memory.metric_DD, ETF_KD), fitted_DW)


def test_features_land_at_the_vertices_of_their_classes():
    feat_NW, label_N = pooled(400, 6)
    found_ND = unit(feat_NW @ of_memory(memory_of([(feat_NW, label_N)])).T)
    drawn_ND = unit(feat_NW @ torch.randn(W, D, generator=torch.Generator().manual_seed(0)))
    share, by_chance = (((h @ ETF_KD.T).argmax(dim=1) == label_N).double().mean() for h in (found_ND, drawn_ND))
    assert share > by_chance + 0.2
