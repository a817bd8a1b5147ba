"""Dense metrics equal an independent confusion matrix, add up over shards, and refuse impossible sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fednc.common.errors import ProtocolError
from fednc.common.tasks.api import add_stats
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.metrics import CONFUSION, MeanIoU, PixelAccuracy, PixelLoss

K, SHAPE = 5, (6, 7, 8)
NAMES = ("a", "b", "c", "d", "e")


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    score_BKHW = torch.randn(SHAPE[0], K, *SHAPE[1:], generator=random)
    score_BKHW[:, K - 1] = -9.0  # never predicted
    label_BHW = torch.randint(0, K - 1, SHAPE, generator=random)  # and no label
    return score_BKHW, torch.where(torch.rand(SHAPE, generator=random) < 0.2, VOID, label_BHW)


def by_numpy(score_BKHW: torch.Tensor, label_BHW: torch.Tensor) -> np.ndarray:
    guess, truth = score_BKHW.numpy().argmax(axis=1).ravel(), label_BHW.numpy().ravel()
    found = np.zeros((K, K), dtype=int)
    for one, other in zip(truth, guess, strict=True):
        if one != VOID:
            found[one, other] += 1
    return found


def all_metrics() -> list:
    return [MeanIoU(56, common=("b",), tail=("c", "d")), PixelAccuracy(56), PixelLoss(56)]


def test_metrics_equal_those_of_an_independent_confusion_matrix() -> None:
    score, label = drawn()
    table = by_numpy(score, label)
    with np.errstate(invalid="ignore"):
        iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
        recall = np.diag(table) / table.sum(1)
    miou, accuracy, loss = all_metrics()
    sums = miou.sums(score, label)
    assert np.array_equal(sums[CONFUSION].numpy(), table)
    assert miou.value(sums, 6) == pytest.approx(np.nanmean(iou), abs=1e-12)
    details = miou.details(sums, 6, NAMES)
    assert [details[f"miou/{name}"] for name in NAMES[:4]] == pytest.approx(iou[:4].tolist())
    assert "miou/e" not in details
    assert details["miou_head"] == pytest.approx(iou[0])
    assert details["miou_common"] == pytest.approx(iou[1])
    assert details["miou_tail"] == pytest.approx((iou[2] + iou[3]) / 2)
    assert accuracy.value(sums, 6) == pytest.approx(np.trace(table) / table.sum())
    assert accuracy.details(sums, 6, NAMES)["class_accuracy"] == pytest.approx(np.nanmean(recall))
    assert loss.value(loss.sums(score, label), 6) == pytest.approx(
        float(F.cross_entropy(score, label, ignore_index=VOID)), abs=1e-6
    )


def test_sums_of_shards_are_the_sums_of_the_whole_in_any_order() -> None:
    score, label = drawn(3)
    for metric in all_metrics():
        whole = metric.sums(score, label)
        for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
            total = metric.zeros(K)
            for row in order:
                add_stats(total, metric.sums(score[row : row + 1], label[row : row + 1]))
            assert all(torch.equal(total[name], value) for name, value in whole.items())


def test_nothing_labelled_gives_no_number() -> None:
    score, label = drawn()
    label[:] = VOID
    for metric in all_metrics():
        sums = metric.sums(score, label)
        assert math.isnan(metric.value(sums, 6))
        metric.check(sums, 6)
        assert metric.details(sums, 6, NAMES) == {}


def test_impossible_sums_are_refused() -> None:
    score, label = drawn()
    for metric in all_metrics():
        sums = metric.sums(score, label)
        metric.check(sums, 6)
        for change in (
            {CONFUSION: -sums[CONFUSION]},
            {CONFUSION: torch.full((K, K), 2**62)},
            {CONFUSION: sums[CONFUSION] * 2},
        ):
            with pytest.raises(ProtocolError):
                metric.check({**sums, **change}, 6)
    loss = PixelLoss(56)
    with pytest.raises(ProtocolError, match="below 0"):
        loss.check({**loss.sums(score, label), "pixel_loss_sum": torch.tensor(-1.0)}, 6)
    for lie in (1e9, math.inf):
        with pytest.raises(ProtocolError, match="without pixels"):
            loss.check({**loss.zeros(K), "pixel_loss_sum": torch.tensor(lie)}, 6)


def test_counts_whose_total_overflows_are_refused() -> None:
    """256 x 256 counts of 2^48 add up to 2^64, which is 0 in 64 bits."""
    metric = MeanIoU(1 << 16)
    sums = {name: zero + (1 << 48) for name, zero in metric.zeros(256).items()}
    assert int(sums[CONFUSION].sum()) == 0
    with pytest.raises(ProtocolError, match="more pixels than"):
        metric.check(sums, 1 << 32)
