"""Ridge regression from class sums: against an independent solution, over any split, and where it is ill-posed.

Legend: N examples, B clients, K label space, D feature width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import MOMENT_GRID_BITS, ClassMemory, ClassSums, on_grid
from fednc.common.learning.frame import unit
from fednc.common.learning.readout import READOUTS
from fednc.common.learning.ridge import ridge_regression
from fednc.common.learning.round_context import Guide
from support.class_sums import D, K, examples

STRENGTH = 0.01


def exact_sums(feat_ND: torch.Tensor, label_N: torch.Tensor) -> ClassSums:
    return ClassSums.zeros(K, D, moment=True, exact=True).add_batch(feat_ND, label_N)


def central(feat_ND: torch.Tensor, label_N: torch.Tensor, strength: float) -> np.ndarray:
    """[K, D + 1]: the solution of the normal equations with a column of ones, from the examples themselves."""
    x = on_grid(feat_ND.double(), MOMENT_GRID_BITS // 2).numpy()
    y = np.eye(K)[label_N.numpy()]
    variance = ((x - x.mean(axis=0)) ** 2).mean()
    wide = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.diag([strength * variance + 2.0**-20] * D + [0.0])
    return np.linalg.solve(wide.T @ wide / len(x) + penalty, wide.T @ y / len(x)).T


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 400), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_any_split_and_any_order_give_the_central_solution(count, clients, seed, strength):
    feat_ND, label_N = examples(count, seed)
    order_N = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    owner_N = torch.randint(clients, (count,), generator=torch.Generator().manual_seed(seed + 1))
    total = ClassSums.zeros(K, D, moment=True, exact=True)
    for client in torch.randperm(clients).tolist():
        mine_B = order_N[owner_N[order_N] == client]
        sent = exact_sums(feat_ND[mine_B], label_N[mine_B]).to_tensors()
        total.merge(ClassSums.from_tensors(sent))
    memory = ClassMemory.empty(K, D).update(total, 0.0, strength)
    whole = ClassMemory.empty(K, D).update(exact_sums(feat_ND, label_N), 0.0, strength)
    assert torch.equal(memory.ridge_KD, whole.ridge_KD)
    assert torch.equal(memory.ridge_K, whole.ridge_K)
    expected = central(feat_ND, label_N, strength)
    found = torch.cat([memory.ridge_KD, memory.ridge_K[:, None]], dim=1).double().numpy()
    # a mean of features is rounded to 2^-24, a moment to 2^-15; both are the same for all, so not part of this
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()


def test_the_solution_itself_is_that_of_the_normal_equations():
    """With features on the grid nothing is rounded, and what is left is float32 of the result."""
    feat_ND, label_N = examples(300, 5)
    feat_ND = on_grid(feat_ND.double(), MOMENT_GRID_BITS // 2)
    onehot_NK = torch.nn.functional.one_hot(label_N, K).double()
    weight, intercept = ridge_regression(
        onehot_NK.T @ feat_ND, onehot_NK.sum(dim=0).long(), feat_ND.T @ feat_ND, STRENGTH
    )
    expected = central(feat_ND, label_N, STRENGTH)
    found = torch.cat([weight, intercept[:, None]], dim=1).double().numpy()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_features_give_a_finite_solution(count):
    feat_ND = unit(torch.ones(count, D))
    memory = ClassMemory.empty(K, D).update(exact_sums(feat_ND, torch.zeros(count, dtype=torch.int64)), 0.0, 1e-9)
    assert memory.ridge_KD.isfinite().all()
    assert memory.ridge_K.tolist() == pytest.approx([1.0, 0, 0, 0, 0], abs=1e-6)


def test_a_class_without_examples_is_never_predicted_and_more_ridge_shrinks():
    feat_ND, label_N = examples(200, 7)
    run = parse_run({"method": {"name": "fedavg", "readout": "ridge"}})
    lengths = []
    for strength in (1e-3, 1.0, 100.0):
        memory = ClassMemory.empty(K, D).update(exact_sums(feat_ND, label_N), 0.0, strength)
        guide = Guide(
            method=run.method,
            etf_KD=torch.zeros(K, D),
            mean_KD=memory.mean_KD,
            seen_K=memory.seen_K,
            ridge_KD=memory.ridge_KD,
            ridge_K=memory.ridge_K,
            count_K=torch.zeros(K),
        )
        scores = READOUTS.get("ridge").memory_scores(feat_ND, guide, 1.0)
        assert (scores[:, K - 1] == -torch.inf).all()  # the class that nobody has
        assert torch.equal(scores[:, : K - 1].argmax(dim=1), scores.argmax(dim=1))
        lengths.append(float(memory.ridge_KD.norm()))
    assert lengths == sorted(lengths, reverse=True)


def test_ridge_follows_the_share_of_the_classes():
    """Where features say nothing, the most frequent class wins; the discriminant has no such prior."""
    label_N = torch.tensor([0] * 90 + [1] * 10)
    feat_ND = unit(torch.ones(100, D))
    memory = ClassMemory.empty(K, D).update(exact_sums(feat_ND, label_N), 0.0, STRENGTH)
    assert memory.ridge_K[:2].tolist() == pytest.approx([0.9, 0.1], abs=1e-6)
