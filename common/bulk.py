"""Bulk data straight to and from the wire: the very bytes that protobuf makes of it, without protobuf's copies.

Generated code copies a chunk three times on either side. Here it is joined with its head once going out, and is a
view on the message coming in. Used where Download and Upload are declared; all other messages stay protobuf's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fednc.common.arrays import Buffer
from fednc.protos import federation_pb2 as pb

Data = bytes | memoryview

_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes
_CHUNK_TAG = pb.Chunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_FRAME_TAG = pb.UploadFrame.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


def chunks(buffers: Iterable[Buffer], size: int) -> Iterator[Data]:
    """The buffers as one run of bytes, in pieces of at most `size`: views on large buffers, small ones joined."""
    small: list[memoryview] = []
    length = 0
    for buffer in buffers:
        view = memoryview(buffer)
        is_large = len(view) > size // 4
        if length and (is_large or length + len(view) > size):
            yield b"".join(small)
            small, length = [], 0
        if is_large:
            yield from (view[start : start + size] for start in range(0, len(view), size))
        else:
            small.append(view)
            length += len(view)
    if length:
        yield b"".join(small)


def pack_chunk(data: Data) -> bytes:
    """`Chunk(data=data).SerializeToString()`."""
    return _pack(_CHUNK_TAG, data)


def unpack_chunk(message: bytes) -> Data:
    """`Chunk.FromString(message).data`."""
    data = _unpack(_CHUNK_TAG, message)
    return pb.Chunk.FromString(message).data if data is None else data


def pack_frame(frame: pb.UploadFrame | Data) -> bytes:
    """A frame; data stands for `UploadFrame(data=data)`."""
    return frame.SerializeToString() if isinstance(frame, pb.UploadFrame) else _pack(_FRAME_TAG, frame)


def unpack_frame(message: bytes) -> pb.UploadFrame | Data:
    """A frame, or its data where that is what it holds."""
    data = _unpack(_FRAME_TAG, message)
    if data is not None:
        return data
    frame = pb.UploadFrame.FromString(message)
    return frame.data if frame.HasField("data") else frame


def _pack(tag: int, data: Data) -> bytes:
    head, rest = bytearray([tag]), len(data)
    while rest > 0x7F:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return b"".join((head, data))


def _unpack(tag: int, message: bytes) -> memoryview | None:
    """The bytes of field `tag` if the message is that field alone; all others are left to protobuf."""
    if len(message) < 2 or message[0] != tag:
        return None
    length = 0
    for place, byte in enumerate(message[1:6], start=1):
        length |= (byte & 0x7F) << 7 * (place - 1)
        if byte < 0x80:  # the length ends here; one that does not end is protobuf's to refuse
            return memoryview(message)[place + 1 :] if len(message) == place + 1 + length else None
    return None
