"""Tensors of the protocol: every data type survives both encodings, and what does not fit is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fednc.ops.serving.refusals import RequestRefusal
from fednc.ops.serving.tensors import BYTES, NUMBERS, check_shape, datatype_of, from_list, from_raw, to_raw

SHAPES = arrays.array_shapes(max_dims=4, max_side=4)


@pytest.mark.parametrize("datatype", NUMBERS)
@settings(max_examples=25)
@given(data=st.data())
def test_numbers_survive(datatype: str, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    values = data.draw(arrays.arrays(NUMBERS[datatype], shape, elements=elements))
    assert datatype_of(values) == datatype
    for found in (
        from_raw(datatype, shape, to_raw(values), "x"),
        from_list(datatype, shape, values.tolist(), "x"),
        from_list(datatype, shape, values.ravel().tolist(), "x"),
    ):
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_bytes_survive(values: list[bytes]) -> None:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    assert from_raw(BYTES, (len(values),), to_raw(found), "x").tolist() == values


@given(
    st.sampled_from([*NUMBERS, BYTES, "BF16", ""]),
    st.lists(st.integers(-2, 2**63), max_size=10),
    st.binary(max_size=64),
)
def test_no_bytes_of_a_stranger_do_more_than_be_refused(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        checked = check_shape(shape, "x")
        found = from_raw(datatype, checked, data, "x")
    except RequestRefusal:
        return
    assert found.shape == checked
    assert math.prod(checked) <= len(data)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
)


@given(
    st.sampled_from([*NUMBERS, BYTES, "BF16"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.lists(ANYTHING),
)
def test_no_list_of_a_stranger_does_more_than_be_refused(datatype: str, shape: list[int], data: list[Any]) -> None:
    try:
        found = from_list(datatype, tuple(shape), data, "x")
    except RequestRefusal:
        return
    assert found.shape == tuple(shape)


@pytest.mark.parametrize(
    ("datatype", "data", "why"),
    [
        ("UINT8", [256], "goes beyond"),
        ("INT8", [-129], "goes beyond"),
        ("INT64", [2**63], "goes beyond"),
        ("INT64", [2**70], "not INT64"),
        ("INT64", [1.5], "not INT64"),
        ("FP32", ["1"], "not FP32"),
        ("FP32", [True], "not FP32"),
        ("FP32", [None], "not FP32"),
        ("BOOL", [1], "not BOOL"),
        ("BYTES", [1], "not strings"),
        ("FP32", [[1.0], [1.0, 2.0]], "rows differ"),
        ("FP32", [1.0, 2.0], "2 values, but shape"),
        ("TEXT", ["a"], "data type 'TEXT' is not supported"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: str, data: list[Any], why: str) -> None:
    with pytest.raises(RequestRefusal, match=why):
        from_list(datatype, (1,), data, "x")
