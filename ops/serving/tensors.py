"""Tensors of the Open Inference Protocol as arrays: data types, JSON lists and raw bytes.

Everything here comes from a stranger, so sizes, types and ranges are checked before an array is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from fednc.ops.serving.refusals import RequestRefusal

Array = np.ndarray[Any, Any]

BYTES = "BYTES"
NUMBERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_MOST_AXES = 8
_LENGTH = struct.Struct("<I")  # before each element of raw BYTES


def check_shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """The shape, if an array can have it. Raises RequestRefusal."""
    if not 1 <= len(shape) <= _MOST_AXES or min(shape) < 0:
        raise RequestRefusal(
            f"input {name!r}: shape {list(shape)[:9]} is not allowed; give 1 to {_MOST_AXES} axes, none negative, "
            "with the number of examples first"
        )
    return tuple(shape)


def from_raw(datatype: str, shape: tuple[int, ...], data: bytes | memoryview, name: str) -> Array:
    """The tensor in raw bytes. Raises RequestRefusal: they are not exactly as many as it needs."""
    wanted = math.prod(shape)
    if datatype == BYTES:
        return _objects(_elements(data, wanted, name), shape)
    dtype = _dtype(datatype, name)
    if len(data) != wanted * dtype.itemsize:
        raise RequestRefusal(
            f"input {name!r}: {len(data)} bytes of raw data, but {datatype} of shape {list(shape)} takes "
            f"{wanted * dtype.itemsize}"
        )
    if datatype == "BOOL":  # a byte that is neither 0 nor 1 would not be a bool
        return np.frombuffer(data, np.uint8).reshape(shape).astype(np.bool_)
    return np.frombuffer(data, dtype).reshape(shape)


def from_list(datatype: str, shape: tuple[int, ...], data: Sequence[Any], name: str) -> Array:
    """The tensor in a nested or flat list. Raises RequestRefusal: it has other values, or not as many."""
    wanted = math.prod(shape)
    if datatype == BYTES:
        return _objects([_as_bytes(each, name) for each in _flat(data, wanted, name)], shape)
    dtype = _dtype(datatype, name)
    try:
        # numpy would make floats of integers beside one that only uint64 can hold.
        found = np.array(data, dtype=object) if datatype == "UINT64" else np.array(data)
    except (ValueError, OverflowError) as e:
        raise RequestRefusal(f"input {name!r}: its data is not a list of numbers, or its rows differ") from e
    if found.size != wanted:
        raise RequestRefusal(f"input {name!r}: {found.size} values, but shape {list(shape)} takes {wanted}")
    if found.size:
        _check_kind(found, datatype, dtype, name)
    with np.errstate(over="ignore"):
        return found.astype(dtype).reshape(shape)


def to_raw(values: Array) -> bytes:
    """An array as raw bytes; of objects, each with its length before it."""
    if values.dtype == object:
        return b"".join(part for each in values.flat for part in (_LENGTH.pack(len(each)), each))
    return values.tobytes()


def datatype_of(values: Array) -> str:
    """The protocol's name for the type of an array that the server has made."""
    if values.dtype == object:
        return BYTES
    return next(name for name, dtype in NUMBERS.items() if dtype == values.dtype)


def texts(values: Sequence[Any]) -> Array:
    """An array of objects from strings."""
    return _objects([str(each).encode() for each in values], (len(values),))


def _dtype(datatype: str, name: str) -> np.dtype[Any]:
    found = NUMBERS.get(datatype)
    if found is None:
        raise RequestRefusal(
            f"input {name!r}: data type {datatype!r} is not supported; use {', '.join(NUMBERS)} or {BYTES}"
        )
    return found


def _check_kind(found: Array, datatype: str, dtype: np.dtype[Any], name: str) -> None:
    if found.dtype == object and all(type(each) is int for each in found.flat):
        found = _as_integers(found)
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if found.dtype.kind not in allowed:
        raise RequestRefusal(f"input {name!r}: its data has values that are not {datatype}")
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if int(found.min()) < bounds.min or int(found.max()) > bounds.max:
            raise RequestRefusal(
                f"input {name!r}: {datatype} goes from {bounds.min} to {bounds.max}, its data goes beyond"
            )


def _as_integers(found: Array) -> Array:
    """Python integers as the smallest type that holds them all; unchanged if none does."""
    lowest, highest = min(found.flat), max(found.flat)
    if lowest >= 0 and highest < 2**64:
        return found.astype(np.uint64)
    return found.astype(np.int64) if lowest >= -(2**63) and highest < 2**63 else found


def _elements(data: bytes | memoryview, wanted: int, name: str) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) < wanted:
        if at + _LENGTH.size > len(data):
            break
        length = _LENGTH.unpack_from(data, at)[0]
        at += _LENGTH.size
        if at + length > len(data):
            break
        found.append(bytes(data[at : at + length]))
        at += length
    if len(found) != wanted or at != len(data):
        raise RequestRefusal(
            f"input {name!r}: its raw data is not {wanted} elements, each after its length in 4 bytes"
        )
    return found


def _flat(data: Sequence[Any], wanted: int, name: str) -> list[Any]:
    rows = list(data)
    while rows and isinstance(rows[0], list):
        if not all(isinstance(row, list) for row in rows):
            raise RequestRefusal(f"input {name!r}: its rows differ")
        rows = [each for row in rows for each in row]
    if len(rows) != wanted:
        raise RequestRefusal(f"input {name!r}: {len(rows)} values, but its shape takes {wanted}")
    return rows


def _as_bytes(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise RequestRefusal(f"input {name!r}: its data has values that are not strings")
    return value.encode(errors="surrogatepass")


def _objects(values: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found.reshape(shape)
