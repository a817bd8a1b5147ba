"""Bulk frames are the very bytes that protobuf makes, and whatever protobuf would read is read alike."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from fednc.common import bulk
from fednc.protos import federation_pb2 as pb

SIZES = st.sampled_from([0, 1, 2, 127, 128, 129, 16_383, 16_384, 1 << 20, (1 << 21) + 1])


@given(size=SIZES, kind=st.sampled_from([bytes, memoryview]))
def test_frames_are_what_protobuf_makes(size, kind):
    data = bytes(range(256)) * (size // 256 + 1)
    piece = kind(data[:size])
    if size:  # an empty field is not written at all
        assert bulk.pack_chunk(piece) == pb.Chunk(data=bytes(piece)).SerializeToString()
        assert bulk.pack_frame(piece) == pb.UploadFrame(data=bytes(piece)).SerializeToString()
    assert bulk.unpack_chunk(pb.Chunk(data=bytes(piece)).SerializeToString()) == piece
    assert bulk.unpack_frame(pb.UploadFrame(data=bytes(piece)).SerializeToString()) == piece


def test_other_frames_stay_protobufs():
    for frame in (
        pb.UploadFrame(end=pb.UploadEnd(digest=bytes(16))),
        pb.UploadFrame(header=pb.UploadHeader(upload_id=b"x")),
    ):
        assert bulk.unpack_frame(bulk.pack_frame(frame)) == frame


@given(st.binary(max_size=40))
@example(b"\x80")  # a length that does not end
@example(b"\x80\x80\x80\x80\x80")
@example(b"\x80\x00")
def test_any_bytes_are_read_as_protobuf_reads_them(message):
    for tag in (b"", b"\x0a", b"\x12"):
        assert_same(lambda m: bytes(bulk.unpack_chunk(m)), lambda m: pb.Chunk.FromString(m).data, tag + message)
        assert_same(lambda m: comparable(bulk.unpack_frame(m)), comparable_frame, tag + message)


def comparable(frame):
    return frame if isinstance(frame, pb.UploadFrame) else bytes(frame)


def comparable_frame(message):
    frame = pb.UploadFrame.FromString(message)
    return frame.data if frame.HasField("data") else frame


def assert_same(ours, protobufs, message):
    try:
        expected = protobufs(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            ours(message)
    else:
        assert ours(message) == expected


@given(
    lengths=st.lists(st.integers(0, 70), max_size=12),
    size=st.sampled_from([1, 7, 16, 64]),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_chunks_hold_every_byte_in_order(lengths, size, kind):
    run = bytes(i % 251 for i in range(sum(lengths)))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    buffers = [kind(run[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    pieces = [bytes(piece) for piece in bulk.chunks(buffers, size)]
    assert b"".join(pieces) == run
    assert all(0 < len(piece) <= size for piece in pieces)
    assert len(pieces) <= 2 * len(run) // max(1, size // 4) + 2, "small buffers travel together"


def test_large_buffers_are_not_copied():
    data = bytearray(300)
    pieces = list(bulk.chunks([data], 100))
    data[250] = 7
    assert pieces[2][50] == 7
