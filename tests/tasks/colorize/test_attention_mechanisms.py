"""What stop-gradient attention promises: the map, its normalisation, and which gradients flow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common.learning.attention_branches import compare, recording
from fednc.tasks.colorize.attention import (
    SLOPE,
    ScaledAttention,
    StopGradientAttention,
    double_normalised,
)
from fednc.tasks.colorize.network import Adversary
from support.colour_tasks import drawn

C, T, S = 6, 5, 7


def block_of(*, stop_gradient: bool = True) -> StopGradientAttention:
    torch.manual_seed(0)
    return StopGradientAttention(C, nn.BatchNorm1d(C), stop_gradient=stop_gradient).double()


def tokens(*, grad: bool = True) -> tuple[Tensor, Tensor]:
    x, y = drawn(2, T, C, seed=1).double(), drawn(2, S, C, seed=2).double()
    return x.requires_grad_(grad), y.requires_grad_(grad)


def test_the_map_is_a_constant_whose_columns_add_up_to_one() -> None:
    x, y = tokens()
    found = block_of().attention_map(x, y)
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, S).double())
    rows = found.sum(dim=2)
    assert float(rows.max() - rows.min()) > 0.1  # the second normalisation is not of the rows
    softmax = torch.bmm(x, y.transpose(1, 2)).softmax(dim=2)
    torch.testing.assert_close(softmax.sum(dim=2), torch.ones(2, T).double())
    torch.testing.assert_close(found, softmax / softmax.sum(dim=1, keepdim=True))


def test_a_key_that_nobody_attends_to_does_not_divide_by_zero() -> None:
    y = drawn(1, S, C)
    y[:, 0] = -1000 * F.normalize(y[:, 0], dim=1)
    found = double_normalised(1000 * drawn(1, T, C, seed=3).abs(), y)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, S))


def formula(block: StopGradientAttention, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    mixed = a @ F.leaky_relu(block.value(y), SLOPE) + F.leaky_relu(block.query(x), SLOPE)
    return x + block.norm(mixed.transpose(1, 2)).transpose(1, 2)


def gradients(found: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((found * drawn(*found.shape, seed=9).double()).sum(), given)


def test_gradients_are_those_of_the_formula_with_a_constant_map() -> None:
    x, y = tokens()
    block = block_of()
    a = double_normalised(x, y).detach()
    mine, wanted = gradients(block(x, y), x, y), gradients(formula(block, x, y, a), x, y)
    for one, other in zip(mine, wanted, strict=True):
        assert torch.equal(one, other)
    open_block = block_of(stop_gradient=False)
    torch.testing.assert_close(open_block(x, y), block_of()(x, y))  # the same result
    for one, other in zip(gradients(open_block(x, y), x, y), wanted, strict=True):
        assert float((one - other).norm() / other.norm()) > 0.01  # another gradient


def test_query_and_value_learn_and_there_is_no_key() -> None:
    block = block_of()
    block(*tokens()).square().sum().backward()
    names = {name.partition(".")[0] for name, _ in block.named_parameters()}
    assert names == {"query", "value", "norm"}
    assert all(bool(p.grad.any()) for p in (block.query.weight, block.value.weight) if p.grad is not None)
    assert block.query.weight.grad is not None
    assert block.value.weight.grad is not None


@pytest.mark.parametrize("which", ["x", "y"])
def test_finite_differences_disagree_by_exactly_the_term_of_the_map(which: str) -> None:
    x, y = tokens()
    block, weight = block_of(), drawn(2, T, C, seed=9).double()
    given = x if which == "x" else y
    own, whole = gradients(block(x, y), given)[0], gradients(block_of(stop_gradient=False)(x, y), given)[0]
    a = double_normalised(x, y)
    x0, y0 = x.detach(), y.detach()
    of_map = torch.autograd.grad((formula(block, x0, y0, a) * weight).sum(), given)[0]
    step, direction = 1e-6, drawn(*given.shape, seed=4).double()

    def moved(by: float) -> float:
        pair = (x0 + by * direction, y0) if which == "x" else (x0, y0 + by * direction)
        return float((block(*pair).detach() * weight).sum())

    measured = (moved(step) - moved(-step)) / (2 * step)
    assert measured == pytest.approx(float((whole * direction).sum()), rel=1e-5)
    assert measured - float((own * direction).sum()) == pytest.approx(float((of_map * direction).sum()), rel=1e-4)


def test_the_map_finds_the_permutation_of_the_source() -> None:
    x = 6 * F.normalize(drawn(1, 8, 32), dim=2)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    y = x[:, order]
    found = double_normalised(x, y)[0].argmax(dim=1)
    assert torch.equal(order[found], torch.arange(8))


# ---- the instrument ------------------------------------------------------------------------------------------


def recorded(block: nn.Module, x: Tensor, y: Tensor) -> dict[tuple[str, str], dict[str, Tensor]]:
    with recording(block) as recorder:
        loss = (block(x, y) * drawn(2, T, C, seed=9).double()).sum()
    return recorder.gradients(loss)


def test_branches_add_up_to_the_gradient_of_the_input() -> None:
    x, y = tokens()
    torch.manual_seed(0)
    for block in (block_of(), block_of(stop_gradient=False), ScaledAttention(C).double()):
        found = recorded(block, x, y)
        plain = gradients(block(x, y), x, y)
        for (_, given), wanted in zip(sorted(found), reversed(plain), strict=True):
            total = torch.stack(list(found[("model", given)].values())).sum(dim=0)
            torch.testing.assert_close(total, wanted)


def test_a_cut_branch_is_not_there_and_outside_recording_nothing_is_copied() -> None:
    x, y = tokens()
    assert set(recorded(block_of(), x, y)[("model", "source")]) == {"value"}
    assert set(recorded(block_of(stop_gradient=False), x, y)[("model", "source")]) == {"value", "map key"}
    with recording(nn.Linear(1, 1)) as recorder:  # a block of another model
        block_of()(x, y)
    assert not recorder.uses


def test_cosines_of_known_gradients() -> None:
    grads = {"a": torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), "b": torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])}
    a, b = compare([{("block", "x"): grads}])
    torch.testing.assert_close(a.total_T, torch.tensor([0.5**0.5, 1.0]).double())
    torch.testing.assert_close(b.others_T, torch.tensor([0.0, -1.0]).double())
    torch.testing.assert_close(a.instance_B, torch.tensor([(1 + 2) / 5**0.5 / 3**0.5]).double())
    assert b.summary()["against"] == 0.5
    assert a.length + b.length == pytest.approx(1)
    assert compare([{("block", "x"): {"a": grads["a"], "b": torch.zeros(1, 2, 2)}}])[1].is_cut


def test_pytorchs_own_attention_is_recorded_without_a_call() -> None:
    torch.manual_seed(0)
    block = nn.MultiheadAttention(C, 2, batch_first=True).double()
    x, y = tokens()
    with recording(block) as recorder:
        found, _ = block(x, y, y)
        loss = found.square().sum()
    grads = recorder.gradients(loss)
    assert {given: set(uses) for (_, given), uses in grads.items()} == {
        "query": {"query"},
        "key/value": {"key", "value"},
    }
    wanted = torch.autograd.grad(block(x, y, y)[0].square().sum(), y)[0]
    torch.testing.assert_close(sum(grads[("model", "key/value")].values()), wanted)
    assert not block._forward_pre_hooks


def test_a_block_that_is_called_twice_has_the_branches_of_both_calls() -> None:
    x, y = tokens()
    block = block_of()
    with recording(block) as recorder:
        loss = block(block(x, y), y).square().sum()
    assert {place[0] for place in recorder.gradients(loss)} == {"model", "model, call 2"}


def test_tokens_before_examples_are_turned() -> None:
    torch.manual_seed(0)
    block = nn.MultiheadAttention(C, 2).double()
    x, y = (value.transpose(0, 1) for value in tokens())
    with recording(block) as recorder:
        loss = block(x, y, y)[0].square().sum()
    assert recorder.gradients(loss)[("model", "query")]["query"].shape == (2, T, C)
    torch.testing.assert_close(block(x, y, y)[0].square().sum(), loss)


def test_every_layer_of_the_adversary_has_a_largest_singular_value_of_one() -> None:
    torch.manual_seed(0)
    adversary = Adversary((8, 16, 32)).train()
    picture = drawn(2, 4, 32, 32)
    for _ in range(100):  # one step of the power iteration in each forward pass
        adversary(picture)
    sizes = [
        torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in adversary if isinstance(layer, nn.Conv2d)
    ]
    assert len(sizes) == 4
    torch.testing.assert_close(torch.stack(sizes), torch.ones(4), rtol=0.02, atol=0.02)
