"""Replies that no honest client sends, with one thing wrong: the header, the order of frames, or the bytes.

Each strategy gives a reply and the outcome it must have. Knows the reply schema of the run, not the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fednc.common.wire import arrays
from fednc.common.wire.checksum import fingerprint
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from support.hostile.contents import bad_sums, content_attacks
from support.hostile.messages import (
    DIGESTS,
    EDITS,
    HUGE_64,
    INVALID,
    Attack,
    Hurt,
    bad_text,
    gibberish,
    setting,
    spoilt,
    wrong_size,
)
from support.hostile.replies import (
    DAMAGED,
    HEADER,
    LATE,
    MOST_AT_ONCE,
    REJECTED,
    HostileReply,
    Model,
    data_frame,
    end_frame,
    honest_content,
    metrics_of,
    model_of,
    to_reply,
)

# ---- headers -----------------------------------------------------------------------------------------------

Spoil = Callable[[pb.UploadHeader, Any], object]
_RECORDS, _ARRAYS, _VALUES = "manifest.records", "manifest.arrays", "manifest.values"


def _fail(header: pb.UploadHeader, **fields: Any) -> None:
    header.manifest.Clear()
    header.failure.MergeFrom(pb.Failure(**{"kind": "OSError", "reason": "x", "code": 1} | fields))


def _each(name: str, values: SearchStrategy[Any]) -> tuple[str, SearchStrategy[Any], Spoil]:
    """Sets a field of one tensor."""
    places = st.tuples(st.integers(0, 99), values)
    return _ARRAYS, places, lambda h, v: setattr(model_of(h)[v[0] % len(model_of(h))], name, v[1])


def _reshape(header: pb.UploadHeader, what: tuple[int, list[int]]) -> None:
    meta = model_of(header)[what[0] % len(model_of(header))]
    before = list(meta.shape)
    del meta.shape[:]
    meta.shape.extend(what[1] if what[1] != before else [*before, 1])


_DTYPES = st.sampled_from(
    ["O", "object", "V0", "float64", "f4,f4", "(2,3)f4", "<f4", "{'names':['a']}", "", "bfloat16", "datetime64"]
)
_STYPES = st.sampled_from(
    ["", "pickle", "numpy.ndarray ", "fednc.delta.int8", "fednc.delta.bf16", "torch"]
) | bad_text(200)
_SHAPES = st.lists(st.integers(0, 4) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1]), max_size=40)

HEADER_HURTS: Sequence[tuple[str, SearchStrategy[Any], Spoil]] = [
    ("upload_id", wrong_size(*range(8, 33), most=99), lambda h, v: setattr(h, "upload_id", v)),
    ("manifest", st.none(), lambda h, _: h.failure.MergeFrom(pb.Failure(kind="x"))),
    ("failure.kind", bad_text(200), lambda h, v: _fail(h, kind=v)),
    ("failure.reason", bad_text(4000), lambda h, v: _fail(h, reason=v)),
    ("failure.code", st.integers(1000, 2**31 - 1) | st.integers(-(2**31), -1), lambda h, v: _fail(h, code=v)),
    (
        _RECORDS,
        st.sampled_from(["", "Model", "model ", "run", "m\u043edel", "../model"]),
        lambda h, v: setattr(h.manifest.records[0], "name", v),
    ),
    (_RECORDS, bad_text(200), lambda h, v: setattr(h.manifest.records[1], "name", v)),
    (_RECORDS, st.none(), lambda h, _: h.manifest.records.append(h.manifest.records[0])),
    (_RECORDS, st.integers(63, 200), lambda h, n: [h.manifest.records.add(name=f"r{i}") for i in range(n)]),
    (_RECORDS, st.none(), lambda h, _: h.manifest.records.add(name="empty")),
    (_RECORDS, st.none(), lambda h, _: h.manifest.records.pop(0)),
    (_RECORDS, st.none(), lambda h, _: h.manifest.records[0].metrics.SetInParent()),
    (_RECORDS, st.none(), lambda h, _: h.manifest.records[1].config.SetInParent()),
    (_ARRAYS, st.none(), lambda h, _: model_of(h).append(model_of(h)[0])),
    (_ARRAYS, st.integers(0, 99), lambda h, v: model_of(h).pop(v % len(model_of(h)))),
    (_ARRAYS, st.text(max_size=9), lambda h, v: model_of(h).add(key=f"?{v}", dtype="float32", stype=arrays.NPY)),
    _each("key", bad_text(4000) | st.sampled_from(["", "__class__", "../x"])),
    _each("dtype", _DTYPES | bad_text(200)),
    _each("stype", _STYPES),
    _each("size", st.just(0) | st.integers(1 << 20, 1 << 40)),
    _each("digest", wrong_size(0, 16)),
    (_ARRAYS, st.tuples(st.integers(0, 99), _SHAPES), _reshape),
    (
        "manifest.size",
        st.tuples(st.integers(0, 99), HUGE_64),
        lambda h, v: setattr(model_of(h)[v[0] % len(model_of(h))], "size", v[1]),
    ),
    (_VALUES, st.none(), lambda h, _: metrics_of(h).append(metrics_of(h)[0])),
    (_VALUES, bad_text(200), lambda h, v: metrics_of(h).add(key=v).scalar.MergeFrom(pb.Scalar(int=1))),
    (_VALUES, st.text(max_size=5), lambda h, v: metrics_of(h).add(key=f"x{v}")),
    (_VALUES, st.none(), lambda h, _: metrics_of(h)[0].list.ints.append(1)),
    (
        _VALUES,
        st.none(),
        lambda h, _: metrics_of(h).add(key="two").list.MergeFrom(pb.ScalarList(ints=[1], doubles=[1])),
    ),
    (_VALUES, st.integers(4097, 4200), lambda h, n: [metrics_of(h).add(key=f"k{i}") for i in range(n)]),
]
_OTHER_IDS = st.sampled_from(["run_id", "group_id", "message_type"])

# ---- UploadWhole -------------------------------------------------------------------------------------------


def wholes(node_id: int) -> SearchStrategy[pb.WholeUpload]:
    """Replies to assignments that do not exist."""
    work_id = st.builds(pb.AssignmentId, node_id=st.just(node_id), run_id=st.text(max_size=3))
    header = st.builds(pb.UploadHeader, id=work_id, upload_id=st.just(bytes(16)))
    return st.builds(pb.WholeUpload, header=header, data=st.binary(max_size=9), digest=DIGESTS)


def bad_wholes(node_id: int) -> SearchStrategy[Attack]:
    others = st.integers(0, 2**64 - 1).filter(lambda v: v != node_id)
    return spoilt(
        "UploadWhole",
        wholes(node_id),
        [
            Hurt("header", st.none(), lambda m, _: m.ClearField("header")),
            Hurt("id", others, lambda m, v: setattr(m.header.id, "node_id", v)),
            setting("data", st.integers(WHOLE_BYTES + 1, 2 * WHOLE_BYTES).map(bytes)),
        ],
    )


# ---- all together ------------------------------------------------------------------------------------------


@st.composite
def _header_attacks(draw: DrawFn, model: Model) -> HostileReply:
    reply = to_reply(honest_content(model))
    name, values, spoil = draw(st.sampled_from(HEADER_HURTS))
    value = draw(values)
    spoil(reply.header, value)
    reply.how, reply.whole = (name, value), draw(st.booleans())
    reply.counted = f"Upload.{name}"
    if draw(st.booleans()):  # sent again, so the second is a duplicate
        reply.times = 2
    return reply


@st.composite
def _frame_attacks(draw: DrawFn, model: Model) -> HostileReply:
    reply = to_reply(honest_content(model))
    header, data = HEADER, b"".join(reply.pieces)
    end, half = end_frame(fingerprint(data)), len(data) // 2
    whole, first, second = data_frame(data), data_frame(data[:half]), data_frame(data[half:])
    lie = end_frame(draw(st.binary(max_size=40)))
    rejected, damaged = (REJECTED, "Upload.data"), (DAMAGED, "")
    reply.frames, (reply.outcome, reply.counted) = draw(
        st.sampled_from(
            [
                ([header, whole, data_frame(b"\0"), end], (REJECTED, "Upload.content")),
                ([header, first, first, second, end], (REJECTED, "Upload.content")),
                ([header, data_frame(bytes(MOST_AT_ONCE + 1)), end], (REJECTED, "Upload.grant")),
                ([header, data_frame(b""), whole, end], rejected),
                ([header, header, whole, end], rejected),
                ([header, b"", whole, end], rejected),
                ([header, whole, lie], damaged),
                ([header, first, end], damaged),
                ([header, second, first, end], damaged),  # out of order
                ([header, end], damaged),
                ([header, whole], damaged),
                ([header], damaged),
                ([whole, end], (None, "Upload.header")),
                ([end], (None, "Upload.header")),
                ([b""], (None, "Upload.header")),
            ]
        )
    )
    reply.how = [len(frame) for frame in reply.frames]
    if reply.outcome is None:
        reply.frames, reply.code = reply.frames[:1], INVALID
    return reply


@st.composite
def _id_attacks(draw: DrawFn, model: Model, node_id: int) -> HostileReply:
    """`attacked_round.py` fills in the `id`; here it is set only where it is wrong."""
    reply = to_reply(honest_content(model))
    reply.outcome, reply.whole = LATE, draw(st.booleans())
    match draw(st.sampled_from(("text", "ordinal", "attempt", "node"))):
        case "text":
            setattr(reply.header.id, draw(_OTHER_IDS), draw(st.text(min_size=1, max_size=9)))
        case "ordinal":
            reply.header.id.ordinal = draw(st.integers(1 << 20, 2**32 - 1))
        case "attempt":
            reply.header.id.attempt = draw(st.integers(1, 2**32 - 1))
        case _:
            reply.header.id.node_id = draw(st.integers(1, 2**64 - 1).filter(lambda v: v != node_id))
            reply.outcome, reply.code = None, INVALID
            reply.counted = "UploadWhole.id" if reply.whole else "Upload.id"
            reply.frames = [HEADER]
    return reply


def bad_replies(model: Model, classes: int, dim: int, node_id: int) -> SearchStrategy[HostileReply]:
    """Replies with one thing wrong each."""
    contents = content_attacks(model, bad_sums(model, classes, dim))
    return _header_attacks(model) | contents | _frame_attacks(model) | _id_attacks(model, node_id)


@st.composite
def gibberish_replies(draw: DrawFn, model: Model) -> HostileReply:
    """Arbitrary frames that are never a whole reply, because they do not end with the digest of their data."""
    reply = to_reply(honest_content(model))
    frames: list[Message] = [pb.UploadFrame(data=b"x" * 40), pb.UploadFrame(end=pb.UploadEnd(digest=b"x"))]
    reply.frames = [HEADER, *draw(st.lists(gibberish(st.sampled_from(frames)), max_size=3))]
    reply.edits = draw(EDITS | st.just([]))
    return reply
