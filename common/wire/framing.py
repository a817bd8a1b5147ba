"""Bulk data straight to and from the wire: the very bytes that protobuf makes of it, without protobuf's copies.

Generated code copies a chunk three times on either side. Here it is joined with its head once going out, and is a
view on the message coming in. Used where Download, Upload and Attend are declared; all others stay protobuf's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fednc.common.wire.arrays import Buffer
from fednc.protos import federation_pb2 as pb

Data = bytes | memoryview  # as it comes in
Piece = list[memoryview]  # as it goes out, in one message: views on whatever it lies in
Parts = tuple[bytes, ...]  # of an assignment: fields as protobuf makes them, which together are the message

_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes
_CHUNK_TAG = pb.Chunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_EVENT_TAG = pb.ServerEvent.ASSIGNMENT_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_FRAME_TAG = pb.UploadFrame.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


class Run:
    """Buffers as one run of bytes, taken from its start in pieces of any size: views, nothing is copied."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        self.left = sum(map(len, self._views))

    def take(self, size: int) -> Piece:
        """The next `size` bytes, or as many as there are."""
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
        """Let go of all that is left."""
        self._views.clear()
        self.left = 0


def size_of(piece: Piece | Parts) -> int:
    """Bytes."""
    return sum(map(len, piece))


def pack_chunk(piece: Piece) -> bytes:
    """`Chunk(data=piece).SerializeToString()`."""
    return _pack(_CHUNK_TAG, piece)


def unpack_chunk(message: bytes) -> Data:
    """`Chunk.FromString(message).data`."""
    data = _unpack(_CHUNK_TAG, message)
    return pb.Chunk.FromString(message).data if data is None else data


def pack_frame(frame: pb.UploadFrame | Piece) -> bytes:
    """A frame; a piece stands for `UploadFrame(data=piece)`."""
    return frame.SerializeToString() if isinstance(frame, pb.UploadFrame) else _pack(_FRAME_TAG, frame)


def pack_event(event: pb.ServerEvent | Parts) -> bytes:
    """An event; parts stand for `ServerEvent(assignment=...)`."""
    return event.SerializeToString() if isinstance(event, pb.ServerEvent) else _pack(_EVENT_TAG, event)


def unpack_frame(message: bytes) -> pb.UploadFrame | Data:
    """A frame, or its data where that is what it holds."""
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
    """The bytes of field `tag` if the message is that field alone; all others are left to protobuf."""
    if len(message) < 2 or message[0] != tag:
        return None
    length = 0
    for place, byte in enumerate(message[1:6], start=1):
        length |= (byte & 0x7F) << 7 * (place - 1)
        if byte < 0x80:  # the length ends here; one that does not end is protobuf's to refuse
            return memoryview(message)[place + 1 :] if len(message) == place + 1 + length else None
    return None
