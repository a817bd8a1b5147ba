"""Serialises messages with bulk data to the same bytes as protobuf, but without protobuf's copies.

Generated code copies a chunk three times on either side. Here, sending copies it once, to join it with its header,
and receiving gives a view on the message. Used for Download, Upload and Attend; all other calls use protobuf.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fednc.common.wire.arrays import Buffer
from fednc.protos import federation_pb2 as pb

Data = bytes | memoryview  # received
Piece = list[memoryview]  # to be sent in one message: views on the buffers that hold it
Parts = tuple[bytes, ...]  # of an assignment: serialised protobuf fields, which together are the message

_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes
_CHUNK_TAG = pb.Chunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_EVENT_TAG = pb.ServerEvent.ASSIGNMENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_FRAME_TAG = pb.UploadFrame.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


class Run:
    """Several buffers as one run of bytes, taken from the start in pieces of any size, without copying."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        self.left = sum(map(len, self._views))

    def take(self, size: int) -> Piece:
        """Take the next `size` bytes, or all that are left."""
        piece, size = [], min(size, self.left)
        self.left -= size
        while size:
            view = self._views.popleft()
            if len(view) > size:
                self._views.appendleft(view[size:])
                view = view[:size]
            piece.append(view)
            size -= len(view)
        return piece

    def drop(self) -> None:
        """Release all that is left."""
        self._views.clear()
        self.left = 0


def size_of(piece: Piece | Parts) -> int:
    """Size in bytes."""
    return sum(map(len, piece))


def pack_chunk(piece: Piece) -> bytes:
    """`Chunk(data=piece).SerializeToString()`."""
    return _pack(_CHUNK_TAG, piece)


def unpack_chunk(message: bytes) -> Data:
    """`Chunk.FromString(message).data`."""
    data = _unpack(_CHUNK_TAG, message)
    return pb.Chunk.FromString(message).data if data is None else data


def pack_frame(frame: pb.UploadFrame | Piece) -> bytes:
    """Serialise a frame; a piece stands for `UploadFrame(data=piece)`."""
    return frame.SerializeToString() if isinstance(frame, pb.UploadFrame) else _pack(_FRAME_TAG, frame)


def pack_event(event: pb.ServerEvent | Parts) -> bytes:
    """Serialise an event; parts stand for `ServerEvent(assignment=...)`."""
    return event.SerializeToString() if isinstance(event, pb.ServerEvent) else _pack(_EVENT_TAG, event)


def unpack_frame(message: bytes) -> pb.UploadFrame | Data:
    """Parse a frame; if it is a data frame, return only its data."""
    data = _unpack(_FRAME_TAG, message)
    if data is not None:
        return data
    frame = pb.UploadFrame.FromString(message)
    return frame.data if frame.HasField("data") else frame


def _pack(tag: int, piece: Piece | Parts) -> bytes:
    head, rest = bytearray([tag]), size_of(piece)
    while rest > 0x7F:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return b"".join((head, *piece))


def _unpack(tag: int, message: bytes) -> memoryview | None:
    """The bytes of field `tag` if the message is only that field; otherwise None, and protobuf must parse it."""
    if len(message) < 2 or message[0] != tag:
        return None
    length = 0
    for place, byte in enumerate(message[1:6], start=1):
        length |= (byte & 0x7F) << 7 * (place - 1)
        if byte < 0x80:  # the length ends here; protobuf refuses one that does not end
            return memoryview(message)[place + 1 :] if len(message) == place + 1 + length else None
    return None
