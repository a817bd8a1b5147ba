"""Small tensors are aggregated together: each with the bits it has alone, in few calls, refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.wire import arrays
from fednc.server.aggregation.mean import Fold
from support.small_updates import DTYPES, REFERENCE, bits, mean_of, started, with_value

TENSORS = st.lists(
    st.tuples(st.sampled_from([1, 2, 7, 8191, 8192, 8193, 70_000]), st.sampled_from(DTYPES)),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=25)
@given(tensors=TENSORS, seed=st.integers(0, 1000))
def test_tensors_that_are_aggregated_together_have_the_bits_of_each_alone(tensors, seed):
    draw = torch.Generator().manual_seed(seed)
    scales = [10.0 ** float(torch.rand((), generator=draw) * 8 - 4) for _ in tensors]  # each has its own grid

    def state() -> dict[str, torch.Tensor]:
        values = [torch.rand(size, generator=draw) for size, _ in tensors]
        return {
            f"t{i}": (value * (scale if dtype.is_floating_point else 100)).to(dtype)
            for i, (value, scale, (_, dtype)) in enumerate(zip(values, scales, tensors, strict=True))
        }

    reference, updates = state(), [(state(), weight) for weight in (3, 1, 4)]
    together = mean_of(updates, reference)
    assert list(together) == list(reference)
    for key in reference:
        alone = mean_of([({key: update[key]}, weight) for update, weight in updates], {key: reference[key]})
        assert bits(alone) == bits({key: together[key]})


def test_a_network_of_small_tensors_is_aggregated_in_few_calls():
    model = {f"layer{i}": torch.zeros(64) for i in range(300)}
    assert len(Fold(model)._sums) == 1
    model |= {"head": torch.zeros(10_000), "steps": torch.tensor(0), "empty": torch.zeros(0)}
    assert len(Fold(model)._sums) == 4
    many = {f"layer{i}": torch.zeros(8192) for i in range(33)}
    assert [len(group) for group in Fold(many)._groups] == [16, 16, 1]


@pytest.mark.parametrize(("key", "value"), [("a", math.nan), ("b", -math.inf), ("b", 2.0**17), ("c", math.inf)])
def test_a_tensor_that_is_aggregated_with_others_is_refused_by_name(key, value):
    fold = started(REFERENCE, [1])
    with pytest.raises(ProtocolError, match=f"tensor '{key}' contains {abs(value):g}"):
        fold.add(arrays.to_record(with_value(key, value)), 1)
