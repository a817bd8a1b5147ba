"""Tensors <-> Flower `Array`s, with as few copies as the format allows.

Flower's stock serialisation is .npy bytes; we write the same bytes (so any Flower app can read them) but fill
the buffer in one copy and read it back as a view. bfloat16, which .npy and Flower refuse, travels as raw bytes
under an stype of our own. No pickle anywhere: the .npy header is parsed by numpy with pickling off.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fednc.common.errors import ProtocolError

NPY = "numpy.ndarray"
RAW_BF16 = "fednc.bfloat16"

Buffer = bytes | bytearray | memoryview


def make_array(dtype: str, shape: tuple[int, ...], stype: str, data: Buffer) -> Array:
    """An `Array` over any buffer. Flower's constructor insists on `bytes`, which would cost a copy."""
    array = Array.__new__(Array)
    array.dtype, array.shape, array.stype = dtype, shape, stype
    array.data = data  # type: ignore[assignment]
    return array


def new_buffer(size: int) -> memoryview:
    """Writable, uninitialised bytes. numpy asks for huge pages: a quarter of the time to fill a bytearray."""
    return np.empty(size, np.uint8).data


def from_numpy(value: np.ndarray[Any, Any]) -> Array:
    """.npy bytes of `value`, in one copy."""
    array = _blank_npy(value.dtype, value.shape)
    to_numpy(array)[...] = value
    return array


def blank_like(value: Tensor) -> Array:
    """An uninitialised `Array` for a tensor of the same shape and dtype; `to_tensor` gives the tensor to write."""
    shape = tuple(value.shape)
    if value.dtype is torch.bfloat16:
        return make_array("bfloat16", shape, RAW_BF16, new_buffer(2 * value.numel()))
    return _blank_npy(np.dtype(str(value.dtype).removeprefix("torch.")), shape)


def _blank_npy(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    head = _npy_header(dtype, shape)
    data = new_buffer(len(head) + math.prod(shape) * dtype.itemsize)
    data[: len(head)] = head
    return make_array(str(dtype), shape, NPY, data)


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(
        header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def from_tensor(value: Tensor) -> Array:
    """An `Array` of a tensor on any device, of any dtype that travels."""
    value = value.detach().cpu()
    if value.dtype is torch.bfloat16:
        array = blank_like(value)
        _bf16_from_raw(array).copy_(value)
        return array
    return from_numpy(value.numpy())


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The values as a view on the array's own bytes; writable only where those are.

    Raises:
        ProtocolError: the bytes are not what dtype and shape declare.
    """
    if array.stype != NPY:
        raise ProtocolError(f"array has serialisation {array.stype!r}, expected {NPY!r}")
    dtype, offset = _expected_npy_header(array) or _parse_npy_header(array)
    count = math.prod(array.shape)
    if min(array.shape, default=0) < 0 or len(array.data) - offset != count * dtype.itemsize:
        raise ProtocolError(f"array of shape {array.shape} has {len(array.data) - offset} bytes of data")
    return np.frombuffer(array.data, dtype=dtype, count=count, offset=offset).reshape(array.shape)


def _expected_npy_header(array: Array) -> tuple[np.dtype[Any], int] | None:
    """dtype and offset if the header is the usual one. Twenty times as fast as numpy's parser, which compiles the
    header as Python source; in CPython before 3.11.8 that also fails now and then when two threads do it at once.
    """
    try:
        dtype = np.dtype(array.dtype)
        head = _npy_header(dtype, tuple(array.shape))
    except (TypeError, ValueError):
        return None
    usual = not dtype.hasobject and memoryview(array.data)[: len(head)] == head
    return (dtype, len(head)) if usual else None


def _parse_npy_header(array: Array) -> tuple[np.dtype[Any], int]:
    head = io.BytesIO(bytes(memoryview(array.data)[:4096]))
    try:
        version = npy.read_magic(head)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = npy.read_array_header_1_0(head)
    except (ValueError, TypeError, EOFError) as e:
        raise ProtocolError(f"array does not start with a .npy header: {e}") from e
    if fortran and len(shape) > 1:
        raise ProtocolError("array is in Fortran order; send it in C order")
    if dtype.hasobject or str(dtype) != array.dtype or tuple(shape) != tuple(array.shape):
        raise ProtocolError(f"array declares {array.dtype}{list(array.shape)} but holds {dtype}{list(shape)}")
    return dtype, head.tell()


def to_tensor(array: Array) -> Tensor:
    """The values as a tensor; shares the array's memory where that is writable and aligned, else a copy."""
    if array.stype == RAW_BF16:
        return _bf16_from_raw(array)
    view = to_numpy(array)
    shareable = view.flags.writeable and view.flags.aligned
    return torch.from_numpy(view if shareable else view.copy())


def _bf16_from_raw(array: Array) -> Tensor:
    if array.dtype != "bfloat16" or len(array.data) != 2 * math.prod(array.shape):
        raise ProtocolError(f"bfloat16 array of shape {array.shape} has {len(array.data)} bytes")
    bits = np.frombuffer(array.data, dtype=np.int16)
    shareable = bits.flags.writeable and bits.flags.aligned
    return torch.from_numpy(bits if shareable else bits.copy()).view(torch.bfloat16).reshape(array.shape)


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """An `ArrayRecord` in the mapping's order."""
    record = ArrayRecord()
    for key, value in tensors.items():
        record[key] = from_tensor(value)
    return record


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """All tensors of a record, by key."""
    return {key: to_tensor(array) for key, array in record.items()}
