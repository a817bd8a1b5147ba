"""The deformable mixer against the written formula, and what its offsets learn.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.tasks.multitask.deformable import MixerBlock, sampled_at


def by_hand(value_BCHW: Tensor, offset_B2CHW: Tensor) -> Tensor:
    """The sum over the four neighbours of a place, each with its bilinear weight; zero outside."""
    found = torch.zeros_like(value_BCHW)
    batch, channels, height, width = value_BCHW.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    y, x = i + float(offset_B2CHW[b, 0, c, i, j]), j + float(offset_B2CHW[b, 1, c, i, j])
                    for near_y in (math.floor(y), math.floor(y) + 1):
                        for near_x in (math.floor(x), math.floor(x) + 1):
                            if 0 <= near_y < height and 0 <= near_x < width:
                                weight = max(0, 1 - abs(y - near_y)) * max(0, 1 - abs(x - near_x))
                                found[b, c, i, j] += weight * value_BCHW[b, c, near_y, near_x]
    return found


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 5), width=st.integers(1, 5), reach=st.floats(0, 4))
def test_sampling_equals_the_formula(seed: int, height: int, width: int, reach: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    value = torch.randn(2, 2, height, width, generator=draw, dtype=torch.float64)
    offset = reach * torch.randn(2, 2, 2, height, width, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(sampled_at(value, offset), by_hand(value, offset), atol=1e-9, rtol=0)


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (-2, 1)])
def test_whole_offsets_move_each_channel_by_its_own(step: tuple[int, int]) -> None:
    value = torch.randn(1, 2, 6, 6)
    offset = torch.zeros(1, 2, 2, 6, 6)
    offset[:, 0, 1], offset[:, 1, 1] = step  # only the second channel moves
    found = sampled_at(value, offset)
    torch.testing.assert_close(found[:, 0], value[:, 0], atol=1e-5, rtol=0)
    moved = torch.roll(value[:, 1], (-step[0], -step[1]), (1, 2))
    torch.testing.assert_close(found[:, 1, 2:-2, 2:-2], moved[:, 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_a_new_block_looks_at_every_pixel_where_it_is() -> None:
    block, given = MixerBlock(8, "group"), torch.randn(2, 8, 5, 7)
    mixed = block.mix_norm(torch.nn.functional.gelu(block.mix(given)))
    plain = mixed + block.look_norm(torch.nn.functional.gelu(block.look(mixed)))
    torch.testing.assert_close(block(given), plain, atol=1e-5, rtol=0)


def test_both_layers_of_the_offsets_learn_after_the_first_step() -> None:
    torch.manual_seed(0)
    block, given, wanted = MixerBlock(8, "group"), torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (block(given) - wanted).square().mean().backward()
        optimiser.step()
    for layer in (block.offsets.places, block.offsets.spread):
        assert layer.weight.grad is not None
        assert float(layer.weight.grad.abs().sum()) > 0
    assert bool(block.offsets(given).any())
