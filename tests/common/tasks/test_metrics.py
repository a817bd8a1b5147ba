"""Metrics: additive whatever the partition, equal to a plain computation over all examples, and checked."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metric_info import MetricInfo
from fednc.common.tasks.metrics import (
    AUROC,
    MAE,
    R2,
    RMSE,
    Accuracy,
    BalancedAccuracy,
    CrossEntropy,
    Metric,
    Stats,
    log_odds,
)

NAMES = ("ant", "bee", "cat")


def drawn(seed: int, examples: int, classes: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (examples,), generator=draw)
    score_BK = spread * torch.randn(examples, classes, generator=draw)
    score_BK[torch.arange(examples), target] += 1.0
    return score_BK, target


def area_by_pairs(value_B: Tensor, own_B: Tensor) -> float:
    """Every pair is looked at."""
    difference = value_B[own_B][:, None] - value_B[~own_B][None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), examples=st.integers(2, 90), spread=st.sampled_from([0.1, 1.0, 8.0]))
def test_auroc_is_that_of_all_pairs_within_the_error_it_reports(seed: int, examples: int, spread: float) -> None:
    score_BK, target = drawn(seed, examples, 2, spread)
    metric = AUROC()
    sums = metric.sums(score_BK, target)
    if len(target.unique()) < 2:
        assert math.isnan(metric.value(sums, examples))
        return
    exactly = area_by_pairs(log_odds(score_BK, 1), target == 1)
    error = metric.details(sums, examples, ("no", "yes"))["auroc_error"]
    assert abs(metric.value(sums, examples) - exactly) <= error + 1e-12
    assert error < 0.5


def test_auroc_error_is_small_for_many_examples() -> None:
    score_BK, target = drawn(0, 20000, 2)
    metric = AUROC()
    assert metric.details(metric.sums(score_BK, target), 20000, ())["auroc_error"] < 1e-3


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), examples=st.integers(9, 60))
def test_auroc_of_three_classes_is_the_mean_of_each_against_the_others(seed: int, examples: int) -> None:
    score_BK, target = drawn(seed, examples, 3)
    metric = AUROC()
    sums = metric.sums(score_BK, target)
    told = metric.details(sums, examples, NAMES)
    known = [label for label in range(3) if 0 < int((target == label).sum()) < examples]
    if not known:
        assert told == {}
        return
    exactly = [area_by_pairs(log_odds(score_BK, label), target == label) for label in known]
    each = [told[f"auroc/{NAMES[label]}"] for label in known]
    assert metric.value(sums, examples) == pytest.approx(sum(each) / len(each))
    assert abs(metric.value(sums, examples) - sum(exactly) / len(exactly)) <= told["auroc_error"] + 1e-12


def test_auroc_ignores_scores_of_classes_that_do_not_exist_yet() -> None:
    score_BK, target = drawn(3, 50, 2)
    wider_BK = torch.cat([score_BK, torch.full((50, 2), -torch.inf)], dim=1)
    narrow, wide = AUROC().sums(score_BK, target), AUROC().sums(wider_BK, target)
    assert AUROC().value(wide, 50) == pytest.approx(AUROC().value(narrow, 50), abs=5e-3)


def test_balanced_accuracy_is_the_mean_recall() -> None:
    score_BK = torch.eye(3)[torch.tensor([0, 0, 0, 1])]
    target = torch.tensor([0, 0, 1, 1])
    assert BalancedAccuracy().value(BalancedAccuracy().sums(score_BK, target), 4) == pytest.approx((1 + 0.5) / 2)
    assert Accuracy().value(Accuracy().sums(score_BK, target), 4) == pytest.approx(3 / 4)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 3))
def test_errors_are_those_of_a_plain_computation(seed: int, width: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    output, target = torch.randn(2, 17, width, generator=draw)
    for metric, exactly in (
        (RMSE("mm"), (output - target).square().mean().sqrt()),
        (MAE(), (output - target).abs().mean()),
    ):
        assert metric.value(metric.sums(output, target), 17) == pytest.approx(float(exactly), abs=1e-6)


CLASSIFIERS = [Accuracy(), BalancedAccuracy(), CrossEntropy(), AUROC()]


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=4), shuffle=st.randoms())
def test_sums_of_parts_in_any_order_are_the_sums_of_the_whole(seed: int, cuts: list[int], shuffle: object) -> None:
    score_BK, target = drawn(seed, 40, 3)
    number_B = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))
    cases: list[tuple[Metric, Tensor, Tensor]] = [(metric, score_BK, target) for metric in CLASSIFIERS]
    cases += [(metric, number_B, number_B.flip(0)) for metric in (RMSE(), MAE())]
    edges = [0, *sorted(cuts), 40]
    parts = list(pairwise(edges))
    shuffle.shuffle(parts)  # type: ignore[attr-defined]
    for metric, output, right in cases:
        pooled: Stats = {}
        for first, end in parts:
            add_stats(pooled, metric.sums(output[first:end], right[first:end]))
        whole = metric.sums(output, right)
        assert all(torch.equal(pooled[name], value) for name, value in whole.items()), metric.name


@pytest.mark.parametrize("metric", [*CLASSIFIERS, RMSE(), MAE()], ids=lambda metric: metric.name)
def test_zeros_have_the_form_of_sums_and_honest_sums_pass(metric: Metric) -> None:
    classifies = metric in CLASSIFIERS
    for classes in (2, 3):
        output, target = drawn(0, 20, classes) if classifies else torch.randn(2, 20)
        sums, zeros = metric.sums(output, target), metric.zeros(classes)
        assert {k: (v.shape, v.dtype) for k, v in sums.items()} == {
            k: (v.shape, v.dtype) for k, v in zeros.items()
        }
        metric.check(sums, 20)
        metric.check(zeros, 0)


@pytest.mark.parametrize(
    ("metric", "name", "spoil"),
    [
        (Accuracy(), "correct_K", lambda v: v + 99),
        (Accuracy(), "correct_K", lambda v: v - 99),
        (Accuracy(), "correct", lambda v: v + 1),
        (Accuracy(), "count_K", lambda v: v + 2**62),
        (BalancedAccuracy(), "count_K", lambda v: v + 1),
        (CrossEntropy(), "loss_sum", lambda v: -v - 1),
        (CrossEntropy(), "loss_sum", lambda v: v * torch.nan),
        (AUROC(), "auroc_own_KN", lambda v: -v),
        (AUROC(), "auroc_own_KN", lambda v: 2 * v),
        (AUROC(), "auroc_other_KN", lambda v: v + 2**60),
        (RMSE(), "rmse_sum", lambda v: -v),
        (MAE(), "mae_sum", lambda v: v * torch.nan),
    ],
)
def test_sums_that_no_examples_have_are_refused(metric: Metric, name: str, spoil: object) -> None:
    output, target = drawn(0, 20, 3) if metric.name in {m.name for m in CLASSIFIERS} else torch.randn(2, 20)
    sums = metric.sums(output, target)
    with pytest.raises(ProtocolError, match="contradict"):
        metric.check({**sums, name: spoil(sums[name])}, 20)  # type: ignore[operator]


@pytest.mark.parametrize(("metric", "name"), [(RMSE(), "rmse_sum"), (MAE(), "mae_sum"), (R2(), "r2_error_sum")])
def test_an_honest_client_has_an_infinite_error_if_the_model_diverged(metric: Metric, name: str) -> None:
    output, target = torch.full((20,), torch.inf), torch.randn(20)
    sums = metric.sums(output, target)
    assert float(sums[name]) == torch.inf
    with pytest.raises(UnusableValuesError):
        metric.check(sums, 20)


def test_direction_and_unit_decide_how_a_value_is_shown() -> None:
    up, down = MetricInfo("accuracy", unit="%"), MetricInfo("rmse", higher_is_better=False, unit="mm")
    assert up.show(0.8154) == "81.5%"
    assert down.show(3.14159) == "3.142 mm"
    assert up.best([0.1, 0.3, 0.2]) == 0.3
    assert down.best([0.1, 0.3, 0.2]) == 0.1
    assert up.best([]) is None
    assert down.is_better(1, 2)
    assert not down.is_better(2, 2)
    assert down.reaches(2, 2)
    assert not down.reaches(2.1, 2)
