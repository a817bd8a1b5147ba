"""Tensors <-> Flower `Array`s, with as few copies as the format allows.

Flower serialises arrays as .npy bytes. We write the same bytes, so any Flower app can read them, but fill the
buffer in one copy and read it back as a view. bfloat16, which .npy and Flower do not support, is sent as raw bytes
under our own stype. No pickle, and no header is parsed: numpy's parser compiles it as Python, which can fail in
many ways. Dtype and shape determine the only valid header; any other is refused.
"""

from __future__ import annotations

import io
import itertools
import math
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fednc.common.errors import ProtocolError

NPY = "numpy.ndarray"
RAW_BF16 = "fednc.bfloat16"

Buffer = bytes | bytearray | memoryview

_NUMERIC = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
DTYPES = {name: np.dtype(name) for name in _NUMERIC.split()}  # that can be sent: all that numpy and PyTorch share
_ALIGNMENT = 64  # bytes; a cache line, and a multiple of every item size
_LARGE_BYTES = 4 << 20
_IDLE: deque[NDArray[np.uint8]] = deque(maxlen=2)  # large pieces of memory that are not in use
_MAGIC = b"\x93NUMPY\x01\x00"
_MOST_DIMENSIONS, _MOST_VALUES = 32, 1 << 56  # numpy counts bytes, of up to 16 per value, in 63 bits


def make_array(dtype: str, shape: tuple[int, ...], stype: str, data: Buffer) -> Array:
    """An `Array` over any buffer. Flower's constructor requires `bytes`, which would cost a copy."""
    array = Array.__new__(Array)
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)  # its setters are slow
    return array


def new_buffers(sizes: Collection[int]) -> list[memoryview]:
    """Writable, uninitialised buffers, next to each other in one piece of memory.

    numpy requests huge pages for a large piece; filling many small pieces takes five times as long.
    """
    ends = list(itertools.accumulate(_aligned(size) for size in sizes))
    whole = _piece_of_memory(ends[-1] if ends else 0).data
    return [whole[end - _aligned(size) :][:size] for end, size in zip(ends, sizes, strict=True)]


def _piece_of_memory(size: int) -> NDArray[np.uint8]:
    """Reuses a large piece that is free, because the system would clear every page of a new one."""
    if size < _LARGE_BYTES:
        return np.empty(size, np.uint8)
    owner = _idle(size)
    piece = owner[:size]  # a numpy slice of this would refer to `owner` and not keep it alive: hand out its bytes
    weakref.finalize(piece, _IDLE.append, owner).atexit = False
    return piece


def _idle(size: int) -> NDArray[np.uint8]:
    """The most recently freed piece that is not much too large, else a new one."""
    for _ in range(len(_IDLE)):
        with suppress(IndexError):  # another thread took it
            owner = _IDLE.pop()
            if size <= owner.size <= 2 * size:
                return owner
            _IDLE.appendleft(owner)
    return np.empty(size, np.uint8)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def blank_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Uninitialised arrays for tensors of these shapes and dtypes; `to_tensor` gives the tensors to write.

    They share one piece of memory, which lives as long as any of them.
    """
    record = ArrayRecord()
    heads = [_head(value) for value in tensors.values()]
    sizes = [
        len(head) + value.numel() * value.element_size()
        for head, value in zip(heads, tensors.values(), strict=True)
    ]
    for (key, value), head, data in zip(tensors.items(), heads, new_buffers(sizes), strict=True):
        data[: len(head)] = head
        dtype, stype = str(value.dtype).removeprefix("torch."), NPY if head else RAW_BF16
        record[key] = make_array(dtype, tuple(value.shape), stype, data)
    return record


def _head(value: Tensor) -> bytes:
    """The header before the values; empty if .npy has no name for the dtype."""
    if value.dtype is torch.bfloat16:
        return b""
    return _npy_header(np.dtype(str(value.dtype).removeprefix("torch.")), tuple(value.shape))


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(
        header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """The values as a view on the array's own bytes; writable only if those are.

    Raises:
        ProtocolError: the bytes do not match dtype and shape.
    """
    dtype = DTYPES.get(array.dtype)
    if array.stype != NPY or dtype is None:
        raise ProtocolError(f"array of {array.dtype!r:.40} with serialisation {array.stype!r:.40} cannot be sent")
    size = _nbytes(array.shape, dtype.itemsize)
    data = memoryview(array.data)
    offset = len(_MAGIC) + 2 + int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "little")
    if len(data) - offset != size:
        raise ProtocolError(
            f"array of shape {array.shape!s:.80} has {len(data) - offset} bytes of data, not {size}"
        )
    head, expected = bytes(data[:offset]), _npy_header(dtype, tuple(array.shape))
    if head != expected and not _differ_in_padding(head, expected):
        raise ProtocolError(f"array declares {array.dtype}{array.shape!s:.80} but begins with {head!r:.200}")
    return np.frombuffer(data, dtype=dtype, offset=offset).reshape(array.shape)


def _differ_in_padding(head: bytes, expected: bytes) -> bool:
    """Whether two headers differ only in their padding, which depends on the version of numpy."""
    start = len(_MAGIC) + 2
    return head[: len(_MAGIC)] == _MAGIC and head[start:].rstrip(b" \n") == expected[start:].rstrip(b" \n")


def _nbytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Size of the data in bytes. Raises ProtocolError if no array can have this shape, not even an empty one."""
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(1, abs(n)) for n in shape) > _MOST_VALUES:
        raise ProtocolError(f"array of {len(shape)} dimensions {shape!s:.80} is too large")
    if min(shape, default=0) < 0:
        raise ProtocolError(f"array with a negative size in its shape {shape!s:.80}")
    return math.prod(shape) * itemsize


def to_tensor(array: Array) -> Tensor:
    """The values as a tensor. Shares the array's memory if that is writable and aligned, else copies it."""
    if array.stype == RAW_BF16:
        return _bf16_from_raw(array)
    view = to_numpy(array)
    shareable = view.flags.writeable and view.flags.aligned
    return torch.from_numpy(view if shareable else view.copy())


def _bf16_from_raw(array: Array) -> Tensor:
    if array.dtype != "bfloat16" or len(array.data) != _nbytes(array.shape, 2):
        raise ProtocolError(
            f"array of {array.dtype!r:.40}{array.shape!s:.80} has {len(array.data)} bytes of bfloat16"
        )
    bits = np.frombuffer(array.data, dtype=np.int16)
    shareable = bits.flags.writeable and bits.flags.aligned
    return torch.from_numpy(bits if shareable else bits.copy()).view(torch.bfloat16).reshape(array.shape)


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """An `ArrayRecord` of tensors on any device, of any supported dtype, in the mapping's order."""
    record = blank_record(tensors)
    for key, value in tensors.items():
        to_tensor(record[key]).copy_(value.detach())
    return record


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """All tensors of a record, by key."""
    return {key: to_tensor(array) for key, array in record.items()}
