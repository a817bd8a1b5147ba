"""Codecs: the error of each, nothing lost over rounds, and invalid encodings are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.wire import arrays, update_codec
from fednc.server.aggregation.mean import Fold

LOSSY = tuple(each.name for each in update_codec.CODECS if isinstance(each, update_codec.DeltaCodec))


def encode(delta: torch.Tensor, name: str) -> arrays.Array:
    codec = update_codec.delta_codec(name)
    assert codec is not None
    return update_codec.encode(delta, codec)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blockwise_largest(delta: torch.Tensor) -> torch.Tensor:
    flat = delta.reshape(-1)
    pieces = [piece.abs().max().expand(len(piece)) for piece in flat.split(update_codec.BLOCK)]
    return torch.cat(pieces).reshape(delta.shape)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 9),
    power=st.integers(-30, 20),
    name=st.sampled_from(LOSSY),
)
def test_errors_stay_within_the_documented_bounds(rows, columns, seed, power, name):
    delta = normal(rows, columns, seed=seed, scale=2.0**power)
    error = (update_codec.decode(encode(delta, name)) - delta).abs()
    bound = delta.abs() / 256 if name == "bf16" else blockwise_largest(delta) / 254
    assert (error <= bound * (1 + 1e-6) + 2**-133).all()


@pytest.mark.parametrize("name", LOSSY)
def test_the_bound_is_tight(name):
    delta = normal(64, 64)
    error = (update_codec.decode(encode(delta, name)) - delta).abs().max()
    assert error > (delta.abs().max() / 600 if name == "int8" else 2**-11)


@pytest.mark.parametrize("name", LOSSY)
def test_with_error_feedback_the_updates_of_all_rounds_add_up(name):
    """The sum of R decoded updates is the true sum except for the last residual, so errors do not build up."""
    reference, residual = {"w": torch.zeros(30, 30)}, {}
    meant, arrived = torch.zeros(30, 30), torch.zeros(30, 30)
    for number in range(50):
        delta = normal(30, 30, seed=number, scale=1e-3) + 1e-4
        record, residual = update_codec.encode_update({"w": delta}, reference, name, residual)
        meant, arrived = meant + delta, arrived + update_codec.decode(record["w"])
    torch.testing.assert_close(arrived + residual["w"], meant, rtol=0, atol=1e-6)
    assert residual["w"].abs().max() < 1e-4


def test_small_and_sensitive_tensors_are_not_encoded():
    state = {"bias": normal(7), "steps": torch.tensor(3), "half": normal(4, 4).half(), "w": normal(4, 4)}
    record, residual = update_codec.encode_update(state, state, "int8", {})
    assert {key for key, array in record.items() if update_codec.is_encoded(array.stype)} == {"w"}
    assert set(residual) == {"w"}
    for key in ("bias", "steps", "half"):
        assert torch.equal(arrays.to_tensor(record[key]), state[key])


def test_fp32_is_exact():
    state = {"w": normal(9, 9), "b": normal(9)}
    record, residual = update_codec.encode_update(state, {k: v + 1 for k, v in state.items()}, "fp32", {})
    assert all(torch.equal(arrays.to_tensor(record[key]), value) for key, value in state.items())
    assert residual == {}


@pytest.mark.parametrize(("name", "share"), [("bf16", 0.5), ("int8", 0.26)])
def test_fewer_bytes(name, share):
    array = encode(normal(500, 500), name)
    assert len(array.data) == update_codec.delta_codec(name).nbytes(250_000)
    assert len(array.data) <= share * 4 * 250_000


@pytest.mark.parametrize("name", update_codec.CODECS.names())
def test_the_fold_adds_the_difference_to_the_global_model(name):
    reference = {"w": normal(40, 40), "b": normal(40)}
    trained = [{k: v + normal(*v.shape, seed=n, scale=0.01) for k, v in reference.items()} for n in (1, 2)]
    fold = Fold(reference)
    fold.start(reference, [1, 3])
    for state, weight in zip(trained, (1, 3), strict=True):
        fold.add(update_codec.encode_update(state, reference, name, {})[0], weight)
    mean = arrays.from_record(fold.mean())
    wanted = {k: (trained[0][k] + 3 * trained[1][k]) / 4 for k in reference}
    tolerance = {"fp32": 1e-6, "bf16": 2e-4, "int8": 3e-4}[name]
    for key, value in wanted.items():
        torch.testing.assert_close(mean[key], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("change", ["short", "dtype", "stype", "nan"])
def test_invalid_encodings_are_refused(change):
    array = encode(normal(8, 8), "int8")
    if change == "short":
        array.data = array.data[:-1]
    elif change == "dtype":
        array.dtype = "float64"
    elif change == "stype":
        array.stype = "fednc.delta.int4"
    else:
        array.data = b"\xff" * len(array.data)  # a step that is not a number
    reference = {"w": torch.zeros(8, 8)}
    fold = Fold(reference)
    fold.start(reference, [1])
    with pytest.raises(ProtocolError):
        fold.add(_record(array), 1)
    assert fold.updates == 0


def _record(array):
    record = arrays.ArrayRecord()
    record["w"] = array
    return record
