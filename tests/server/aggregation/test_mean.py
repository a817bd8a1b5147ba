"""The mean: identical bits in any order, within its documented error, and all of an update or nothing.

Legend: C updates (clients), N values of a tensor.
"""

from __future__ import annotations

import math
import random
import struct
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.wire import arrays, update_codec
from fednc.server.aggregation.mean import Fold, NormBound
from support.small_updates import DTYPES, REFERENCE, bits, good, mean_of, started, with_value

UNIT_ROUNDOFF = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


# ---- any order ---------------------------------------------------------------------------------------------


def test_ten_million_values_in_twenty_orders_have_identical_bits():
    values, clients, orders = 500_000, 20, 20  # ten million values
    draw = np.random.default_rng(7)
    # Magnitudes so far apart that ordinary sums round differently in every order.
    rows_CN = draw.standard_normal((clients, values)) * 10.0 ** draw.uniform(-8, 3, (clients, values))
    weights = draw.integers(1, 10_000, clients).tolist()
    updates = [
        ({"w": torch.from_numpy(row.astype(np.float32))}, w) for row, w in zip(rows_CN, weights, strict=True)
    ]
    shuffled = random.Random(11)
    found, naive = set(), set()
    for _ in range(orders):
        shuffled.shuffle(updates)
        found.add(bits(mean_of(updates, reference={"w": torch.full((values,), 1.0)})))
        naive.add(bits({"w": sum(u["w"][:1000].double() * weight for u, weight in updates)}))
    assert len(found) == 1
    assert len(naive) > 1, "with these values an ordinary sum would pass too"


floats = st.floats(min_value=-(2.0**16), max_value=2.0**16, width=32)


@given(
    columns=st.lists(st.lists(floats, min_size=3, max_size=3), min_size=2, max_size=6),
    weights=st.lists(st.integers(1, 2**20), min_size=6, max_size=6),
    data=st.data(),
)
def test_any_order_gives_the_same_bits(columns, weights, data):
    updates = [({"w": torch.tensor(c)}, w) for c, w in zip(columns, weights, strict=False)]
    other = data.draw(st.permutations(updates))
    reference = {"w": torch.ones(3)}
    assert bits(mean_of(updates, reference)) == bits(mean_of(other, reference))


# ---- the right mean ----------------------------------------------------------------------------------------


def exact_mean(column: list[float], weights: list[int]) -> float:
    """Products of 24-bit values and whole weights are exact in float64, fsum adds them exactly."""
    return math.fsum(value * weight for value, weight in zip(column, weights, strict=True)) / sum(weights)


@given(
    rows_CN=st.integers(1, 8).flatmap(
        lambda c: st.lists(st.lists(floats, min_size=4, max_size=4), min_size=c, max_size=c)
    ),
    data=st.data(),
)
def test_the_mean_is_within_the_documented_bound(rows_CN, data):
    weights = data.draw(st.lists(st.integers(1, 2**20), min_size=len(rows_CN), max_size=len(rows_CN)))
    updates = [({"w": torch.tensor(row, dtype=torch.float64)}, w) for row, w in zip(rows_CN, weights, strict=True)]
    found = mean_of(updates, reference={"w": torch.ones(4, dtype=torch.float64)})["w"]
    for column, value in zip(zip(*rows_CN, strict=True), found.tolist(), strict=True):
        bound, updates_per_weight = 2.0**16, len(weights) / sum(weights)
        allowed = bound * (2.0**-51 * max(weights) * updates_per_weight + 2.0**-62 * len(weights))
        assert abs(value - exact_mean(list(column), weights)) <= allowed + 2.0**-52 * abs(value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_averaged_in_its_own_dtype(dtype):
    generator = torch.Generator().manual_seed(3)
    rows_CN = torch.randint(0, 100, (5, 70_001), generator=generator)  # more than one block of values
    weights = [3, 1, 4, 1, 5]
    updates = [({"w": row.to(dtype).reshape(70_001, 1)}, w) for row, w in zip(rows_CN, weights, strict=True)]
    found = mean_of(updates)["w"]
    expected = (rows_CN.double() * torch.tensor(weights).double()[:, None]).sum(0) / sum(weights)
    assert (found.dtype, found.shape) == (dtype, (70_001, 1))
    error = (found.double().flatten() - expected).abs()
    assert bool((error <= UNIT_ROUNDOFF.get(dtype, 0.5) * expected.clamp(min=1)).all())


def test_small_values_beside_large_ones_keep_float32_precision():
    """A thousand clients, a value 2000 times below the largest."""
    updates = [({"w": torch.tensor([1.0, 5e-4 * (1 + k / 1000)])}, 100 + k) for k in range(1000)]
    found = mean_of(updates)["w"].double().tolist()
    expected = exact_mean([u["w"][1].item() for u, _ in updates], [w for _, w in updates])
    assert found[0] == 1.0
    assert abs(found[1] - expected) <= 1.5 * 2**-24 * expected


def test_values_that_are_not_averaged_stay_the_same():
    reference = {"mask": torch.tensor([True, False]), "w": torch.zeros(2)}
    found = mean_of([({"mask": torch.tensor([False, False]), "w": torch.ones(2)}, 1)], reference)
    assert found["mask"].tolist() == [True, False]
    assert found["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)], ids=str)
def test_odd_shapes(shape):
    found = mean_of([({"w": torch.full(shape, 2.0)}, 1), ({"w": torch.full(shape, 4.0)}, 3)])
    assert torch.equal(found["w"], torch.full(shape, 3.5))


def test_a_mean_that_starts_again_forgets():
    fold = started({"w": torch.zeros(3)}, [10])
    fold.add(arrays.to_record({"w": torch.full((3,), 5.0)}), 10)
    fold.start({"w": torch.ones(3)}, [4])
    fold.add(arrays.to_record({"w": torch.tensor([1.0, 2.0, 3.0])}), 4)
    assert arrays.from_record(fold.mean())["w"].tolist() == [1.0, 2.0, 3.0]
    assert (fold.updates, fold.weight) == (1, 4)


def test_values_in_unaligned_memory():
    """A stored upload is one block of bytes, so an array may start anywhere."""
    record = arrays.to_record({"w": torch.tensor([1.0, 2.0])})
    data = record["w"].data
    record["w"] = arrays.make_array("float32", (2,), arrays.NPY, memoryview(b"x" + bytes(data))[1:])
    fold = started({"w": torch.zeros(2)}, [1])
    fold.add(record, 1)
    assert arrays.from_record(fold.mean())["w"].tolist() == [1.0, 2.0]


# ---- the norm of an update ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 5, 70_000]),
    share=st.floats(0, 3).filter(lambda share: abs(share - 1) > 1e-5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_change_of_a_larger_norm_than_allowed_is_refused_and_leaves_nothing(seed, size, share, dtype):
    draw = torch.Generator().manual_seed(seed)
    reference = {
        "w": torch.randn(size, generator=draw).to(dtype),
        "b": torch.randn(3, generator=draw),
        "steps": torch.tensor(7),
        "control": torch.zeros(2),
    }
    change = {key: torch.randn(reference[key].shape, generator=draw).to(reference[key].dtype) for key in "wb"}
    update = {key: reference[key] + change[key] for key in "wb"}
    norm = sum(float(((update[key].double() - reference[key].double()) ** 2).sum()) for key in "wb") ** 0.5
    update |= {"steps": torch.tensor(10**5), "control": torch.full((2,), 1e3)}  # without a bound

    fold = Fold(reference)
    fold.start(reference, [2, 3], NormBound(share * norm, ["w", "b", "steps"]))
    fold.add(arrays.to_record(reference), 2)
    alone = bits(arrays.from_record(fold.mean()))
    if share > 1:
        fold.add(arrays.to_record(update), 3)
        assert (fold.updates, fold.weight) == (2, 5)
    else:
        with pytest.raises(ProtocolError, match="changes the model by a norm of"):
            fold.add(arrays.to_record(update), 3)
        assert (fold.updates, fold.weight) == (1, 2)
        assert bits(arrays.from_record(fold.mean())) == alone


def test_a_norm_that_overflows_is_too_large():
    reference = {"w": torch.full((2,), 1e300, dtype=torch.float64)}
    fold = Fold(reference)
    fold.start(reference, [1], NormBound(1e300, "w"))
    with pytest.raises(ProtocolError, match="norm of inf"):
        fold.add(arrays.to_record({"w": torch.full((2,), -1e300, dtype=torch.float64)}), 1)


def test_a_bound_on_the_norm_applies_to_the_decoded_update():
    reference = {"w": torch.ones(4, 4)}
    record, _ = update_codec.encode_update({"w": torch.full((4, 4), 2.0)}, reference, "int8", {})
    for most, is_taken in ((4.1, True), (3.9, False)):
        fold = Fold(reference)
        fold.start(reference, [1], NormBound(most, "w"))
        with nullcontext() if is_taken else pytest.raises(ProtocolError, match="norm of 4"):
            fold.add(record, 1)


# ---- all or nothing ----------------------------------------------------------------------------------------


BAD = {
    "nan": with_value("b", math.nan),
    "nan in bfloat16": with_value("c", math.nan),
    "inf": with_value("b", math.inf),
    "minus inf": with_value("b", -math.inf),
    "beyond the bound": with_value("b", 2.0**17),
    "a name is missing": {k: v for k, v in good().items() if k != "b"},
    "a name too many": good() | {"d": torch.ones(1)},
    "another shape": good() | {"b": torch.ones(4)},
    "another dtype": good() | {"b": torch.ones(2, 2, dtype=torch.float64)},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_update_is_refused_and_leaves_no_trace(bad):
    fold = started(REFERENCE, [2, 3, 5])
    fold.add(arrays.to_record(good()), 2)
    before = bits(arrays.from_record(fold.mean()))
    with pytest.raises(ProtocolError):
        fold.add(arrays.to_record(bad), 3)
    assert bits(arrays.from_record(fold.mean())) == before
    assert (fold.updates, fold.weight) == (1, 2)


@pytest.mark.parametrize("weight", [0, -1, 3, 4])
def test_a_weight_beyond_what_was_announced_is_refused(weight):
    fold = started(REFERENCE, [2, 3, 3])
    fold.add(arrays.to_record(good()), 3)
    fold.add(arrays.to_record(good()), 3)
    with pytest.raises(ProtocolError, match=f"declares {weight} examples"):
        fold.add(arrays.to_record(good()), weight)
    assert (fold.updates, fold.weight) == (2, 6)


def test_nan_anywhere_in_a_long_tensor_is_found():
    values = torch.zeros(200_000)
    fold = started({"w": values}, [1])
    for place in (0, 65_535, 65_536, 199_999):
        spoiled = values.clone()
        spoiled[place] = math.nan
        with pytest.raises(ProtocolError, match="nan"):
            fold.add(arrays.to_record({"w": spoiled}), 1)


@settings(max_examples=200)
@given(data=st.binary(min_size=4, max_size=4))
def test_any_four_bytes_are_folded_or_refused(data):
    """Whatever float32 a client sends: the mean is that value, or it is refused."""
    (value,) = struct.unpack("<f", data)
    record = ArrayRecord()
    record["w"] = arrays.to_record({"w": torch.frombuffer(bytearray(data), dtype=torch.float32)})["w"]
    fold = started({"w": torch.ones(1)}, [1])
    try:
        fold.add(record, 1)
    except ProtocolError:
        assert not abs(value) <= 2.0**16
    else:
        assert abs(arrays.from_record(fold.mean())["w"].item() - value) <= 2.0**-34 + 2.0**-24 * abs(value)
