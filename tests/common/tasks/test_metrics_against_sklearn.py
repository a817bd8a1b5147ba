"""Metrics from additive sums against scikit-learn's, over all examples at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import AUROC, F1, R2, BalancedAccuracy, CrossEntropy, Metric, Stats

CASES = st.tuples(st.integers(0, 10**6), st.integers(20, 200), st.sampled_from([2, 3, 5]))


def drawn(case: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Scores and labels; every class occurs."""
    seed, examples, classes = case
    draw = torch.Generator().manual_seed(seed)
    label_B = torch.cat([torch.arange(classes), torch.randint(0, classes, (examples - classes,), generator=draw)])
    score_BK = 2 * torch.randn(examples, classes, generator=draw, dtype=torch.float64)
    score_BK[torch.arange(examples), label_B] += 1
    return score_BK, label_B


def sums_of(metric: Metric, output: Tensor, target: Tensor) -> Stats:
    """From three clients."""
    total = metric.zeros(output.shape[1] if output.ndim > 1 else 0)
    for part in torch.arange(len(target)).tensor_split(3):
        add_stats(total, metric.sums(output[part], target[part]))
    metric.check(total, len(target))
    return total


@settings(max_examples=30)
@given(case=CASES)
def test_auroc_is_within_the_error_that_it_states(case: tuple[int, int, int]) -> None:
    score_BK, label_B = drawn(case)
    share_BK = score_BK.softmax(dim=1)
    given = share_BK[:, 1] if case[2] == 2 else share_BK
    expected = reference.roc_auc_score(label_B, given, multi_class="ovr", average="macro")
    metric = AUROC()
    sums = sums_of(metric, score_BK, label_B)
    error = metric.details(sums, len(label_B), [])["auroc_error"]
    assert abs(metric.value(sums, len(label_B)) - expected) <= error + 1e-12


@settings(max_examples=30)
@given(case=CASES)
def test_f1_balanced_accuracy_and_loss(case: tuple[int, int, int]) -> None:
    score_BK, label_B = drawn(case)
    guess_B, examples, names = score_BK.argmax(dim=1), len(label_B), [f"c{i}" for i in range(case[2])]
    metric = F1()
    sums = sums_of(metric, score_BK, label_B)
    details = metric.details(sums, examples, names)
    macro = reference.f1_score(label_B, guess_B, average="macro", zero_division=0)
    if case[2] == 2:
        assert metric.value(sums, examples) == pytest.approx(reference.f1_score(label_B, guess_B))
        assert details["f1_macro"] == pytest.approx(macro)
    else:
        assert metric.value(sums, examples) == pytest.approx(macro)
    each = reference.f1_score(label_B, guess_B, average=None, zero_division=0)
    assert [details[f"f1/{name}"] for name in names] == pytest.approx(each.tolist())
    balanced = BalancedAccuracy()
    assert balanced.value(sums_of(balanced, score_BK, label_B), examples) == pytest.approx(
        reference.balanced_accuracy_score(label_B, guess_B)
    )
    loss = CrossEntropy()
    assert loss.value(sums_of(loss, score_BK, label_B), examples) == pytest.approx(
        reference.log_loss(label_B, score_BK.softmax(dim=1)), abs=1e-6
    )


@given(seed=st.integers(0, 10**6), middle=st.sampled_from([0.0, 1e4]), scale=st.sampled_from([0.01, 1.0, 50.0]))
def test_r2(seed: int, middle: float, scale: float) -> None:
    draw = np.random.default_rng(seed)
    target = middle + scale * draw.normal(size=60)
    output = target + scale * draw.normal(size=60)
    metric = R2(step=2.0**-30, middle=middle)
    sums = sums_of(metric, torch.from_numpy(output), torch.from_numpy(target))
    assert metric.value(sums, 60) == pytest.approx(reference.r2_score(target, output), rel=1e-3, abs=1e-3)


def test_r2_of_targets_that_are_all_the_same_is_undefined() -> None:
    metric = R2()
    same = torch.full((5,), 3.0)
    assert math.isnan(metric.value(sums_of(metric, torch.zeros(5), same), 5))


def test_impossible_sums_are_refused() -> None:
    score_BK, label_B = drawn((1, 40, 3))
    f1, r2 = F1(), R2()
    fine = f1.sums(score_BK, label_B)
    numbers = r2.sums(torch.zeros(4), torch.tensor([1.0, -2.0, 3.0, 0.5]))
    lies: list[tuple[Metric, Stats, int]] = [
        (f1, {**fine, "guessed_K": fine["guessed_K"] + 1}, 40),
        (f1, {**fine, "guessed_K": torch.tensor([40, 0, 0])}, 40),
        (f1, {**fine, "correct_K": fine["count_K"] + 1}, 40),
        (r2, {**numbers, "r2_error_sum": torch.tensor(-1.0, dtype=torch.float64)}, 4),
        (r2, {**numbers, "r2_target_sum": torch.tensor(99.0, dtype=torch.float64)}, 4),
        (r2, {**numbers, "r2_square_sum": torch.tensor(math.inf, dtype=torch.float64)}, 4),
        (r2, numbers, 0),
    ]
    for metric, sums, examples in lies:
        with pytest.raises(ProtocolError):
            metric.check(sums, examples)
