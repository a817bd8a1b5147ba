"""The temperature of the read-out and the calibration error, against other implementations and by properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.learning.readout import tempered
from fednc.common.tasks import temperature
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import CalibrationError, Stats
from fednc.common.tasks.temperature import GRID, LOSS, MOST_NATS, ROWS


def scores(rows: int, classes: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def drawn(score_BK: Tensor, seed: int = 1) -> Tensor:
    """Labels with the probabilities that the scores state: they are perfectly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(score_BK.double().softmax(dim=1), 1, generator=generator).squeeze(1)


def fit(score_BK: Tensor, label_B: Tensor) -> float:
    found = temperature.fitted(temperature.losses(score_BK, label_B))
    assert found is not None
    return found


@pytest.mark.parametrize("spread", [0.7, 2.0, 6.0])
def test_calibrated_scores_need_no_temperature(spread: float) -> None:
    score_BK = scores(6_000, 5, spread)
    assert fit(score_BK, drawn(score_BK)) == pytest.approx(1, rel=0.07)


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 1.7, 9.0, 100.0])
def test_the_temperature_scales_with_the_scores(factor: float) -> None:
    score_BK = scores(1_000, 4, 2.0)
    label_B = drawn(score_BK)
    assert fit(factor * score_BK, label_B) == pytest.approx(factor * fit(score_BK, label_B), rel=5e-3)


def test_it_is_near_the_exact_minimum() -> None:
    score_BK = 4 * scores(1_000, 6, 1.5)
    label_B = drawn(score_BK / 4)

    def loss(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(score_BK.double() / t, label_B))

    fine = min(np.geomspace(2, 8, 401), key=loss)
    assert fit(score_BK, label_B) == pytest.approx(fine, rel=1e-2)
    assert loss(fit(score_BK, label_B)) <= loss(fine) + 1e-5


def test_sums_over_shards_are_those_of_all_rows() -> None:
    score_BK = scores(500, 7, 3.0)
    label_B = drawn(score_BK)
    pooled = temperature.losses(score_BK, label_B)
    total: Stats = temperature.no_losses()
    for part in torch.randperm(500).tensor_split(13):
        add_stats(total, temperature.losses(score_BK[part], label_B[part]))
    assert total.keys() == pooled.keys()
    for name, value in pooled.items():
        assert torch.equal(total[name], value), name


def test_without_a_minimum_the_nearest_to_1_is_taken() -> None:
    label_B = torch.arange(4).repeat(10)
    right_BK = 9.0 * torch.nn.functional.one_hot(label_B, 4)
    assert fit(right_BK, label_B) == 1, "no error: the data says only that it is not far above 1"
    assert fit(right_BK / 40, label_B) < 0.2, "far too modest, which 40 rows show"
    assert temperature.fitted(temperature.no_losses()) is None


def test_rows_whose_class_has_no_score_are_left_out() -> None:
    score_BK = scores(300, 4, 2.0)
    label_B = drawn(score_BK)
    label_B[:20] = 3
    open_BK = score_BK.clone()
    open_BK[:, 3] = -math.inf
    known_B = label_B != 3
    found = temperature.losses(open_BK, label_B)
    assert int(found[ROWS]) == int(known_B.sum())
    assert all(map(torch.equal, found.values(), temperature.losses(open_BK[known_B], label_B[known_B]).values()))


@pytest.mark.parametrize("t", [GRID[0], 0.3, 1.0, 1.1, 3.0, 7.7, GRID[-1]])
def test_a_temperature_never_changes_a_prediction(t: float) -> None:
    score_BK = scores(2_000, 5, 3.0)
    near = torch.nextafter(score_BK[:, :1], torch.tensor(math.inf))
    close_BK = torch.cat([score_BK[:, :1], near, score_BK[:, :1] - 1], dim=1)  # one unit in the last place apart
    tied_BK = score_BK.round()
    open_BK = score_BK.masked_fill(torch.arange(5) == 2, -math.inf)
    for each in (score_BK, close_BK, close_BK.flip(1), tied_BK, open_BK, 1e4 * score_BK):
        assert torch.equal(tempered(each, t).argmax(dim=1), each.argmax(dim=1))
    torch.testing.assert_close(tempered(score_BK, t), score_BK / t, rtol=1e-6, atol=0)


def test_temperature_1_keeps_the_bits() -> None:
    score_BK = scores(10, 3, 1.0)
    assert tempered(score_BK, 1.0) is score_BK


def lie(**change: Tensor) -> Stats:
    score_BK = scores(20, 3, 1.0)
    return {**temperature.losses(score_BK, drawn(score_BK)), **change}


@pytest.mark.parametrize(
    "sums",
    [
        lie(rows=torch.tensor(21)),
        lie(rows=torch.tensor(-1)),
        lie(loss_G=torch.full((len(GRID),), -0.1, dtype=torch.float64)),
        lie(loss_G=torch.full((len(GRID),), 20 * MOST_NATS + 1, dtype=torch.float64)),
        lie(loss_G=torch.full((len(GRID),), math.nan, dtype=torch.float64)),
    ],
)
def test_impossible_sums_are_refused(sums: Stats) -> None:
    temperature.check_losses(lie(), 20)
    with pytest.raises(ProtocolError):
        temperature.check_losses(sums, 20)


def test_one_row_cannot_outweigh_the_others() -> None:
    score_BK = scores(600, 4, 2.0)
    label_B = drawn(score_BK)
    before = fit(score_BK, label_B)
    mad_BK = torch.cat([score_BK, 1e6 * torch.eye(4)[:1]])
    after = fit(mad_BK, torch.cat([label_B, torch.tensor([2])]))
    assert after == pytest.approx(before, rel=0.15), "as sure as can be, and wrong"
    sums = temperature.losses(mad_BK[-1:], torch.tensor([2]))
    assert float(sums[LOSS].max()) == MOST_NATS


# ---- expected calibration error ------------------------------------------------------------------------------


def by_numpy(score_BK: Tensor, label_B: Tensor) -> float:
    """With a loop over the bins, from probabilities in NumPy."""
    wide = score_BK.double().numpy()
    probability = np.exp(wide - wide.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    confidence, guess = probability.max(axis=1), probability.argmax(axis=1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs((guess == label_B.numpy())[inside].mean() - confidence[inside].mean())
    return float(error)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_calibration_error_is_that_of_an_independent_implementation(spread: float, classes: int) -> None:
    score_BK, metric = scores(1_000, classes, spread), CalibrationError()
    label_B = drawn(score_BK / 2)
    total: Stats = {}
    for part in torch.randperm(1_000).tensor_split(7):
        add_stats(total, metric.sums(score_BK[part].float(), label_B[part]))
    assert metric.value(total, 1_000) == pytest.approx(by_numpy(score_BK, label_B), abs=1e-6)
    metric.check(total, 1_000)
    for name in metric.zeros(classes):
        with pytest.raises(ProtocolError):
            metric.check({**total, name: total[name] + 1}, 1_000)


def test_the_fitted_temperature_lowers_the_calibration_error() -> None:
    score_BK = 10 * scores(1_500, 5, 1.0)
    label_B, metric = drawn(score_BK / 10), CalibrationError()
    before, after = (
        metric.value(metric.sums(tempered(score_BK, t), label_B), 1_500) for t in (1.0, fit(score_BK, label_B))
    )
    assert before > 0.2
    assert after < 0.03
