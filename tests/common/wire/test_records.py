"""Bytes on the wire: every dtype and shape arrives bit for bit, and wrong declarations are refused."""

import gc
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.wire import arrays, records
from fednc.protos import federation_pb2 as pb
from support.raw_node import data_of

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def array_of(value: torch.Tensor) -> Array:
    """The array of one tensor in a record."""
    return arrays.to_record({"w": value})["w"]


def over_the_wire(content: RecordDict) -> RecordDict:
    manifest = records.to_manifest(content, with_digests=True)
    stream = data_of(content)
    assert len(stream) == records.bulk_bytes(manifest)
    parsed = pb.Manifest.FromString(manifest.SerializeToString())
    offset, pieces = 0, []
    for meta in records.metas_of(parsed):
        pieces.append(bytearray(stream[offset : offset + meta.size]))
        offset += meta.size
    return records.from_manifest(parsed, iter(pieces))


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    raw = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (raw / 7).to(dtype) if dtype.is_floating_point else raw.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back(dtype, shape):
    value = random_tensor(dtype, shape)
    back = over_the_wire(RecordDict({"arrays": arrays.to_record({"w": value})}))["arrays"]
    result = arrays.from_record(back)["w"]
    assert result.dtype == dtype
    assert result.shape == value.shape
    assert torch.equal(result, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_contiguous_tensors_come_back(dtype):
    value = random_tensor(dtype, (6, 8)).t()[::2]
    assert not value.is_contiguous()
    assert torch.equal(arrays.to_tensor(array_of(value)), value)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-45])
def test_special_floats_keep_their_bits(special):
    value = torch.tensor([special, 1.0])
    back = arrays.to_tensor(array_of(value))
    assert torch.equal(back.view(torch.int32), value.view(torch.int32))


def test_our_bytes_are_flowers_bytes():
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert bytes(array_of(torch.from_numpy(value)).data) == Array(value).data
    assert np.array_equal(array_of(torch.from_numpy(value)).numpy(), value)


SCALARS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
LISTS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.floats(allow_nan=False)))
CONFIG = st.one_of(
    SCALARS, LISTS, st.booleans(), st.text(), st.binary(), st.lists(st.booleans()), st.lists(st.text())
)


@settings(max_examples=100, deadline=None)
@given(metrics=st.dictionaries(st.text(), st.one_of(SCALARS, LISTS)), config=st.dictionaries(st.text(), CONFIG))
def test_metrics_and_configs_come_back(metrics, config):
    content = RecordDict({"m": MetricRecord(metrics), "c": ConfigRecord(config), "a": ArrayRecord()})
    back = over_the_wire(content)
    assert list(back) == list(content)
    assert dict(back["m"]) == metrics
    assert dict(back["c"]) == config
    assert [type(v) for v in back["c"].values()] == [type(v) for v in config.values()]


@pytest.mark.parametrize("change", ["dtype", "shape", "negative", "truncate", "pickle", "garbage"])
def test_bytes_that_contradict_their_declaration_are_refused(change):
    array = array_of(torch.ones((4, 4)))
    if change == "dtype":
        array.dtype = "float64"
    elif change == "shape":
        array.shape = (8, 8)
    elif change == "negative":  # header, declaration and product agree
        array.data = bytes(array.data).replace(b"(4, 4), }  ", b"(-4, -4), }")
        array.shape = (-4, -4)
    elif change == "truncate":
        array.data = array.data[:-1]
    elif change == "pickle":
        array.data = bytes(array.data).replace(b"'<f4'", b"'|O' ")
    else:
        array.data = b"\x00" * len(array.data)
    with pytest.raises(ProtocolError):
        arrays.to_tensor(array)


def test_duplicate_names_are_refused():
    manifest = records.to_manifest(RecordDict({"m": MetricRecord({"a": 1})}), with_digests=False)
    manifest.records.append(manifest.records[0])
    with pytest.raises(ProtocolError, match="occurs twice"):
        records.from_manifest(manifest, iter(()))


def test_a_digest_is_computed_once_and_depends_on_the_content():
    array = array_of(torch.zeros(3))
    assert records.digest_of(array) is records.digest_of(array)
    assert records.digest_of(array) != records.digest_of(array_of(torch.ones(3)))


def test_reading_a_content_does_not_keep_it_in_memory():
    """Flower's own `content.array_records` does: a round's updates would wait for the garbage collector."""
    content = RecordDict({"m": arrays.to_record({"w": torch.ones(3)}), "v": MetricRecord({"n": 1})})
    gc.disable()
    try:
        assert records.record_of(content, "m", ArrayRecord) is content["m"]
        assert records.record_of(content, "v", ArrayRecord) is None
        assert records.record_of(content, "x", MetricRecord) is None
        seen = weakref.ref(content)
        del content
        assert seen() is None
    finally:
        gc.enable()
