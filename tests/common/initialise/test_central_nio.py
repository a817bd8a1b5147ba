"""NIO in one process: what it measures, how it changes scales, and what that is worth."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from fednc.common.config.tables import InitSection
from fednc.common.initialise.adam import RescaleAdam, largest_scale
from fednc.common.initialise.nio import aim, learn, mean_cosine, share
from fednc.common.initialise.probe import Layout, batch_statistics
from fednc.common.initialise.windows import cut, windows
from support.initialisation_digits import Place, place

SMALL = {"batch": 32, "iters": 5}


def unit(rows: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=1)


# ---- 1: the cosine


def test_the_cosine_of_equal_directions_is_one_and_of_opposite_ones_minus_one() -> None:
    one = unit(1, seed=0)[0]
    assert mean_cosine(4 * one, 4) == pytest.approx(1)
    assert mean_cosine(one - one, 2) == pytest.approx(-1)
    assert mean_cosine(one, 1) == 1


@given(st.integers(2, 6), st.integers(0, 1000))
def test_the_cosine_is_the_mean_over_pairs(rows: int, seed: int) -> None:
    unit_RN = unit(rows, seed)
    pairs = [float(a @ b) for a, b in itertools.combinations(unit_RN, 2)]
    assert mean_cosine(unit_RN.sum(dim=0), rows) == pytest.approx(sum(pairs) / len(pairs))


def test_the_cosine_ignores_the_loss_s_scale_and_the_order_of_sub_batches() -> None:
    here = place(SMALL)
    batches = here.cuts(next(here.batches()))
    cosine, norm = here.measure(batches)
    loss = here.task.loss

    def louder(*args: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value, parts = loss(*args)  # type: ignore[arg-type]
        return 3 * value, parts

    here.task.loss = louder  # type: ignore[method-assign, assignment]
    cosine_of_louder, norm_of_louder = here.measure(batches[::-1])
    assert cosine_of_louder == pytest.approx(cosine, abs=1e-5)
    assert norm_of_louder == pytest.approx(3 * norm, rel=1e-5)


# ---- 2: windows


def test_windows_are_those_of_the_published_code() -> None:
    found = [(w.start, w.stop) for w in windows(64, 4, 0.2)]
    assert found == [(0, 19), (12, 38), (25, 57), (38, 64)]


@given(st.integers(1, 8), st.integers(1, 40), st.floats(0, 1))
def test_windows_cover_the_batch(parts: int, length: int, overlap: float) -> None:
    batch = parts * length + parts // 2
    found = windows(batch, parts, overlap)
    assert {row for window in found for row in range(batch)[window]} == set(range(batch))
    assert all(0 <= w.start < w.stop <= batch for w in found)
    if overlap == 0:
        assert [w.start for w in found] == [length * s for s in range(parts)]


@given(st.integers(1, 8), st.integers(1, 40))
def test_without_overlap_they_are_a_partition(parts: int, length: int) -> None:
    found = windows(parts * length, parts, 0.0)
    assert [row for window in found for row in range(parts * length)[window]] == list(range(parts * length))


def test_every_kind_of_batch_can_be_cut() -> None:
    batch = {"x": (torch.arange(5), [torch.arange(10).view(5, 2)])}
    found = cut(batch, slice(1, 3))
    assert found["x"][0].tolist() == [1, 2]
    assert found["x"][1][0].tolist() == [[2, 3], [4, 5]]


# ---- 3: the slope


def by_autograd(here: Place, batches: list, scale_P: torch.Tensor, objective: str) -> torch.Tensor:
    """d/dalpha of the objective by autograd through a functional call, without the formulas."""
    alpha_P = scale_P.clone().requires_grad_()
    start = {name: p.detach().clone().requires_grad_() for name, p in here.model.named_parameters()}
    scaled = {n: a * start[n] for n, a in zip(here.probe.layout.scaled, alpha_P, strict=True)}
    weights = {**start, **scaled}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = here.model

        def forward(self, batch: object) -> torch.Tensor:
            return here.task.loss(self.inner, batch, here.guide)[0]

    wrapped = Wrapped()
    gradients = []
    for batch in batches:
        loss = functional_call(wrapped, {f"inner.{n}": w for n, w in weights.items()}, (batch,))
        found = torch.autograd.grad(
            loss, [weights[n] for n in here.probe.layout.differentiated], create_graph=True
        )
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
    norms = torch.stack([g.norm() for g in gradients])
    cosines = [nn.functional.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(gradients, 2)]
    total = {
        "constraint": norms.mean(),
        "cosine": -torch.stack(cosines).mean(),
        "cosine-norm": -torch.stack(cosines).mean() - norms.sum(),
        "cosine-square": -torch.stack(cosines).mean() - norms.square().sum(),
    }[objective]
    return torch.autograd.grad(total, alpha_P)[0]


@pytest.mark.parametrize("objective", ["constraint", "cosine", "cosine-norm", "cosine-square"])
def test_the_slope_is_autograd_s(objective: str) -> None:
    kind = {"gamma": 1e-9} if objective == "constraint" else {"objective": objective, "gamma": 1e9}
    here = place({**SMALL, **kind}, seed=3, task={"width": 8})
    here.model.double()
    batches = [(x.double(), y) for x, y in here.cuts(next(here.batches()))]
    probe = type(here.probe)(here.task, here.model, here.guide, here.task.shared_keys(here.model))
    scale_P = torch.linspace(0.5, 1.5, len(probe.layout.scaled), dtype=torch.float64)
    expected_P = by_autograd(here, batches, scale_P, objective)
    probe.set(scale_P)
    found = [probe.gradient(batch) for batch in batches]
    now = aim(here.section, [float(one.norm.detach()) for one in found])
    assert now.branch == ("constraint" if objective == "constraint" else "objective")
    sum_N = torch.stack([one.unit_N.detach() for one in found]).sum(dim=0)
    total = torch.stack([share(one, sum_N - one.unit_N, len(found), now) for one in found]).sum()
    torch.testing.assert_close(
        probe.slope(total), expected_P, rtol=1e-5, atol=1e-5 * float(expected_P.abs().max())
    )


# ---- 4: only scales change


def test_every_tensor_stays_a_positive_multiple_of_itself() -> None:
    here = place({**SMALL, "iters": 20, "lr": 0.2}, seed=1)
    before = {name: p.detach().clone() for name, p in here.model.named_parameters()}
    draws = itertools.islice(map(here.cuts, here.batches()), 20)
    found = learn(here.probe, draws, here.section)
    scales = dict(zip(here.probe.layout.scaled, found.scale_P.tolist(), strict=True))
    for name, p in here.model.named_parameters():
        if name in scales:
            torch.testing.assert_close(p.detach(), before[name] * scales[name])
        else:
            assert "bias" in name
            assert not p.detach().any(), "a zero bias stays zero"
    assert any(abs(scale - 1) > 0.1 for scale in scales.values())
    assert all(scale >= (0 if "bias" in name else 0.01) for name, scale in scales.items())


def test_scales_stop_at_their_floor_and_below_their_bound() -> None:
    adam = RescaleAdam(torch.tensor([0.01, 0.0], dtype=torch.float64), lr=0.3, clip=1.0)
    for _ in range(10):
        adam.step("objective", torch.tensor([5.0, 5.0]))
    assert adam.scale_P.tolist() == [0.01, 0.0]
    rising = RescaleAdam(torch.zeros(1), lr=0.3, clip=1.0)
    for step in range(200):
        rising.step(
            "constraint" if step % 50 == 49 else "objective", torch.tensor([-1.0 if step % 50 == 49 else -1e-6])
        )
        assert float(rising.scale_P) <= largest_scale(0.3, step + 1)


# ---- 5: two branches


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.floats(0.1, 10))
def test_the_constraint_holds_iff_the_mean_norm_is_above_the_bound(norms: list[float], gamma: float) -> None:
    branch = aim(InitSection(gamma=gamma), norms).branch
    assert (branch == "constraint") == (sum(norms) / len(norms) > gamma)


def test_a_constraint_step_lowers_the_norm_on_its_batch() -> None:
    here = place({**SMALL, "gain": 1.5, "gamma": 1.0, "iters": 1}, seed=2)
    batches = here.cuts(next(here.batches()))
    _, before = here.measure(batches)
    found = learn(here.probe, [batches], here.section)
    _, after = here.measure(batches)
    assert found.steps == {"objective": 0, "constraint": 1}
    assert after < before


def test_moments_of_the_branches_do_not_mix() -> None:
    """Objective steps are the same with or without constraint steps of equal size between them."""
    alone, mixed = (RescaleAdam(torch.zeros(2), lr=0.01, clip=1.0) for _ in range(2))
    slope_P = torch.tensor([0.3, -0.2])
    for _ in range(4):
        before = mixed.scale_P
        mixed.step("objective", slope_P)
        moved = mixed.scale_P - before
        mixed.step("constraint", -slope_P)
        alone.step("objective", slope_P)
        torch.testing.assert_close(moved, torch.tensor([-0.01, 0.01], dtype=torch.float64))
    torch.testing.assert_close(mixed.scale_P, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(alone.scale_P, torch.tensor([0.96, 1.04], dtype=torch.float64))


# ---- the best of the path


def test_batch_statistics_are_used_but_not_kept() -> None:
    here = place(SMALL, task={"model": "cnn", "norm": "batch", "width": 8})
    here.model.train()
    before = {name: value.clone() for name, value in here.model.named_buffers()}
    batch = next(here.batches())
    with batch_statistics(here.model):
        used = here.task.loss(here.model, batch, here.guide)[0]
        learn(here.probe, [here.cuts(batch)], here.section)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in here.model.named_buffers())
    assert all(module.training for module in here.model.modules())
    here.probe.set(torch.ones(len(here.probe.layout.scaled)))
    here.model.train()
    torch.testing.assert_close(used, here.task.loss(here.model, batch, here.guide)[0])


def test_batch_normalisation_is_scaled_but_left_out_of_gradients() -> None:
    here = place(SMALL, task={"model": "cnn", "norm": "batch", "width": 8})
    layout = Layout.of(here.model, here.task.shared_keys(here.model))
    normed = {f"{n}.weight" for n, m in here.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert normed
    assert normed <= set(layout.scaled)
    assert not normed & set(layout.differentiated)


# ---- 7 and 8: what it is worth
