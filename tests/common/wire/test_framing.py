"""Bulk frames are exactly the bytes that protobuf makes, and are read as protobuf reads them."""

from __future__ import annotations

import itertools

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from fednc.common.wire import framing
from fednc.protos import federation_pb2 as pb

SIZES = st.sampled_from([0, 1, 2, 127, 128, 129, 16_383, 16_384, 1 << 20, (1 << 21) + 1])


@given(size=SIZES, kind=st.sampled_from([bytes, memoryview]))
def test_frames_are_what_protobuf_makes(size, kind):
    data = bytes(range(256)) * (size // 256 + 1)
    piece = kind(data[:size])
    if size:  # an empty field is not written
        parts = [memoryview(piece)[: size // 3], memoryview(piece)[size // 3 :]]
        assert framing.pack_chunk(parts) == pb.Chunk(data=bytes(piece)).SerializeToString()
        assert framing.pack_frame(parts) == pb.UploadFrame(data=bytes(piece)).SerializeToString()
    assert framing.unpack_chunk(pb.Chunk(data=bytes(piece)).SerializeToString()) == piece
    assert framing.unpack_frame(pb.UploadFrame(data=bytes(piece)).SerializeToString()) == piece


@given(
    blobs=st.lists(st.binary(max_size=300), max_size=3),
    key=st.text(max_size=200),
    ordinal=st.integers(0, 2**32 - 1),
)
def test_the_parts_of_an_assignment_make_the_whole(blobs, key, ordinal):
    content = pb.Manifest(records=[pb.Record(name=key)])
    whole = pb.Assignment(id=pb.AssignmentId(ordinal=ordinal), content=content, blobs=blobs)
    parts = [pb.Assignment(id=whole.id), pb.Assignment(content=content, blobs=blobs)]
    event = framing.pack_event(tuple(part.SerializeToString() for part in parts))
    assert pb.ServerEvent.FromString(event) == pb.ServerEvent(assignment=whole)
    assert framing.pack_event(pb.ServerEvent(assignment=whole)) == event


def test_other_frames_are_left_to_protobuf():
    for frame in (
        pb.UploadFrame(end=pb.UploadEnd(digest=bytes(16))),
        pb.UploadFrame(header=pb.UploadHeader(upload_id=b"x")),
    ):
        assert framing.unpack_frame(framing.pack_frame(frame)) == frame


@given(st.binary(max_size=40))
@example(b"\x80")  # a length without an end
@example(b"\x80\x80\x80\x80\x80")
@example(b"\x80\x00")
def test_any_bytes_are_read_as_protobuf_reads_them(message):
    for tag in (b"", b"\x0a", b"\x12"):
        assert_same(lambda m: bytes(framing.unpack_chunk(m)), lambda m: pb.Chunk.FromString(m).data, tag + message)
        assert_same(lambda m: comparable(framing.unpack_frame(m)), comparable_frame, tag + message)


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
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_pieces_hold_every_byte_in_order_and_have_the_requested_size(lengths, sizes, kind):
    whole = bytes(i % 251 for i in range(sum(lengths)))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    run = framing.Run(kind(whole[end - n : end]) for n, end in zip(lengths, ends, strict=True))
    seen = b""
    for size in itertools.cycle(sizes):
        piece = run.take(size)
        assert framing.size_of(piece) == min(size, len(whole) - len(seen))
        seen += b"".join(piece)
        assert run.left == len(whole) - len(seen)
        if not run.left:
            break
    assert seen == whole
    assert run.take(1) == []


def test_buffers_are_not_copied():
    data = bytearray(300)
    run = framing.Run([data[:0], data])
    run.take(200)
    [piece] = run.take(100)
    data[250] = 7
    assert piece[50] == 7
