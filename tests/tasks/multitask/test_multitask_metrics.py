"""Losses and metrics of the tasks: values by hand, sums that add up over clients, constants, impossible sums.

Legend: B batch, H height, W width.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import Metric
from fednc.tasks.dense.maps import VOID
from fednc.tasks.multitask import losses, metrics

PIXELS = 64
EVERY: dict[str, Metric] = {
    "segmentation": metrics.ClassIoU(PIXELS),
    "parts": metrics.PartIoU(PIXELS, ("a", "b", "c")),
    "saliency": metrics.saliency_f(PIXELS),
    "normals": metrics.NormalError(PIXELS),
    "depth": metrics.DepthRMSE(PIXELS),
    "edges": metrics.edge_f(PIXELS, 1),
}


def drawn(task: str, seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    """Predictions and truth of some pictures, with pixels of which nothing is known."""
    draw = torch.Generator().manual_seed(seed)
    shape, known = (count, 8, 8), torch.rand((count, 8, 8), generator=draw) < 0.8
    if task in ("segmentation", "parts"):
        label = torch.randint(0, 3, shape, generator=draw)
        return torch.randn((count, 3, 8, 8), generator=draw), torch.where(known, label, VOID)
    if task == "normals":
        truth = torch.nn.functional.normalize(torch.randn((count, 3, 8, 8), generator=draw), dim=1)
        return torch.randn((count, 3, 8, 8), generator=draw), truth * known[:, None]
    output = torch.randn((count, 1, 8, 8), generator=draw)
    if task == "depth":
        return output, torch.where(known, torch.rand(shape, generator=draw), math.nan)
    return output, torch.where(known, (torch.rand(shape, generator=draw) < 0.3).long(), VOID)


@pytest.mark.parametrize("task", EVERY)
def test_sums_of_clients_add_up_to_those_of_all_pictures_and_pass_the_check(task: str) -> None:
    metric, (output, target) = EVERY[task], drawn(task, 1)
    whole = metric.sums(output, target)
    parts = metric.zeros(3)
    for part in (slice(0, 1), slice(1, 1), slice(1, 5)):
        sums = metric.sums(output[part], target[part])
        assert {name: (value.dtype, value.shape) for name, value in sums.items()} == {
            name: (value.dtype, value.shape) for name, value in metric.zeros(3).items()
        }
        parts = add_stats(parts, sums)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    metric.check(whole, 5)
    assert math.isfinite(metric.value(whole, 5))
    assert f"{metric.name}/constant" in metric.details(whole, 5, ("a", "b", "c"))
    assert math.isnan(metric.value(metric.zeros(3), 5))
    assert metric.details(metric.zeros(3), 5, ("a", "b", "c")) == {}


@pytest.mark.parametrize("task", EVERY)
def test_more_pixels_than_there_are_or_less_than_none_are_refused(task: str) -> None:
    metric = EVERY[task]
    sums = metric.sums(*drawn(task, 1))
    with pytest.raises(ProtocolError):
        metric.check({name: 2 * value for name, value in sums.items()}, 4)
    for name in sums:
        with pytest.raises(ProtocolError):
            metric.check({**sums, name: -1 - sums[name].abs()}, 5)


@pytest.mark.parametrize("name", ["depth_error_sum", "depth_sum", "depth_square_sum"])
def test_sums_of_depths_without_pixels_are_refused(name: str) -> None:
    """They would count in the mean of all other clients."""
    metric = EVERY["depth"]
    metric.check(metric.zeros(3), 5)
    with pytest.raises(ProtocolError):
        metric.check({**metric.zeros(3), name: torch.tensor(1e-7, dtype=torch.float64)}, 5)


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 180.0])
def test_the_error_of_normals_is_the_angle(angle: float) -> None:
    truth = torch.zeros(1, 3, 8, 8)
    truth[:, 2] = 1
    turn = math.radians(angle)
    output = torch.tensor([math.sin(turn), 0.0, math.cos(turn)])[None, :, None, None].expand(1, 3, 8, 8) * 7
    metric = EVERY["normals"]
    assert metric.value(metric.sums(output, truth), 1) == pytest.approx(angle, abs=1e-4)


def test_depth_is_judged_at_known_pixels_and_never_below_zero() -> None:
    truth = torch.full((1, 8, 8), math.nan)
    truth[0, 0, :2] = torch.tensor([0.5, 1.0])
    output = torch.full((1, 1, 8, 8), -3.0)
    output[0, 0, 0, 1] = 0.9
    metric = EVERY["depth"]
    sums = metric.sums(output, truth)
    assert metric.value(sums, 1) == pytest.approx(math.sqrt((0.25 + 0.01) / 2), abs=1e-6)
    assert metric.details(sums, 1, ())["depth_rmse/constant"] == pytest.approx(0.25)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), tolerance=st.integers(0, 2))
def test_the_f_measure_equals_one_by_hand(seed: int, tolerance: int) -> None:
    output, target = drawn("edges", seed, 2)
    metric = metrics.edge_f(PIXELS, tolerance)
    sums = metric.sums(output, target)
    share, best = output[:, 0].sigmoid().numpy(), 0.0
    true, known = (target == 1).numpy(), (target != VOID).numpy()
    for threshold in metrics.THRESHOLDS:
        guess = (share >= np.float32(threshold)) & known
        right = sum(_near(place, true, tolerance) for place in np.argwhere(guess))
        found = sum(_near(place, guess, tolerance) for place in np.argwhere(true))
        if right and found:
            precision, recall = right / guess.sum(), found / true.sum()
            best = max(best, 2 * precision * recall / (precision + recall))
    assert metric.value(sums, 2) == pytest.approx(best, abs=1e-9)


def _near(place: np.ndarray, there: np.ndarray, tolerance: int) -> bool:  # type: ignore[type-arg]
    picture, row, column = place
    top, left = max(0, row - tolerance), max(0, column - tolerance)
    return bool(there[picture, top : row + tolerance + 1, left : column + tolerance + 1].any())


@pytest.mark.parametrize("task", EVERY)
def test_a_constant_prediction_has_the_constants_value(task: str) -> None:
    """Of the best constant: the value that is reported, and no other constant is better."""
    metric, (_, target) = EVERY[task], drawn(task, 3)
    best = metric.details(metric.sums(*drawn(task, 3)), 5, ("a", "b", "c"))[f"{metric.name}/constant"]
    found = [metric.value(metric.sums(each.expand(5, -1, 8, 8), target), 5) for each in constants(task, target)]
    assert (max if metric.higher_is_better else min)(found) == pytest.approx(best, abs=1e-5)


def constants(task: str, target: Tensor) -> list[Tensor]:
    if task in ("segmentation", "parts"):
        return [torch.eye(3)[number][None, :, None, None] for number in range(3)]
    if task == "normals":
        return [one[None, :, None, None] for one in metrics.directions()]
    if task == "depth":
        return [target.nanmean().reshape(1, 1, 1, 1) + offset for offset in (-0.1, 0.0, 0.1)]
    return [torch.full((1, 1, 1, 1), value) for value in (-9.0, 9.0)]


def test_counts_of_parts_whose_total_overflows_are_refused() -> None:
    metric = metrics.PartIoU(1 << 16, [str(part) for part in range(256)])
    sums = {name: zero + (1 << 48) for name, zero in metric.zeros(0).items()}
    with pytest.raises(ProtocolError, match="more pixels than"):
        metric.check(sums, 1 << 32)


# ---- losses


def test_losses_equal_their_formulas() -> None:
    share = 0.95
    output, truth = drawn("edges", 5)
    known = truth != VOID
    p, y = output[:, 0].sigmoid()[known].double(), truth[known].double()
    by_hand = -(share * y * p.log() + (1 - share) * (1 - y) * (1 - p).log()).mean()
    assert float(losses.edges_loss(output, truth, share)) == pytest.approx(float(by_hand), rel=1e-5)
    weight = 1 - y.mean()
    by_hand = -(weight * y * p.log() + (1 - weight) * (1 - y) * (1 - p).log()).mean()
    assert float(losses.saliency_loss(output, truth)) == pytest.approx(float(by_hand), rel=1e-5)

    output, truth = drawn("normals", 5)
    known = truth.abs().sum(dim=1) > 0
    unit = output / output.norm(dim=1, keepdim=True)
    by_hand = (unit - truth).abs().sum(dim=1)[known].mean()
    assert float(losses.normals_loss(output, truth)) == pytest.approx(float(by_hand), rel=1e-5)

    output, truth = drawn("depth", 5)
    by_hand = (output[:, 0] - truth).abs().nanmean()
    assert float(losses.depth_loss(output, truth)) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("task", ["parts", "saliency", "normals", "depth", "edges"])
def test_unknown_pixels_have_no_part_in_a_loss(task: str) -> None:
    output, truth = drawn(task, 2)
    loss_of = losses.loss_of(task, 0.95)
    unknown = ~_known(task, truth)
    other = output.clone()
    other.movedim(1, -1)[unknown] = 100.0
    assert torch.equal(loss_of(output, truth), loss_of(other, truth))
    output.requires_grad_()
    nothing = loss_of(output, drawn_unknown(task, truth))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.detach()) == 0
    assert output.grad is not None
    assert not bool(output.grad.any())


def _known(task: str, truth: Tensor) -> Tensor:
    if task == "normals":
        return truth.abs().sum(dim=1) > 0
    return ~truth.isnan() if task == "depth" else truth != VOID


def drawn_unknown(task: str, truth: Tensor) -> Tensor:
    return torch.full_like(truth, {"normals": 0.0, "depth": math.nan}.get(task, VOID))
