"""Replies that no honest client sends: one thing wrong with the header, the order of frames, or the bytes.

Each strategy gives a reply and what must come of it. Knows the agreement of the run, not the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from google.protobuf.message import Message
from hostile_messages import EDITS, HUGE_64, INVALID, OK, Edit, bad_text, gibberish, spoil_bytes, wrong_size
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from fednc.common import arrays, exchange, records
from fednc.common.fingerprint import fingerprint
from fednc.protos import federation_pb2 as pb

REJECTED, COMMITTED, DAMAGED = pb.Receipt.REJECTED, pb.Receipt.COMMITTED, pb.Receipt.DAMAGED
LATE, DUPLICATE = pb.Receipt.LATE, pb.Receipt.DUPLICATE
HEADER = b"<header>"
EXAMPLES = 10  # that every node announces
MOST_AT_ONCE = 1 << 20  # bytes in one message, however few uploads share the window
FAR = 100.0  # norm beyond which a change is too large


class Model(dict[str, Tensor]):
    """Tensors by name, of which hypothesis does not print every number."""

    def __repr__(self) -> str:
        return "the model"


@dataclass(repr=False)
class HostileReply:
    """A reply under way to the server. `outcome` None: the call ends with `code` instead of a receipt."""

    header: pb.UploadHeader
    pieces: list[bytearray]  # of each array, in the manifest's order
    frames: list[bytes] | None = None  # instead of header, pieces and end; HEADER stands for the header
    counted: str = ""
    outcome: pb.Receipt.Outcome | None = REJECTED
    code: grpc.StatusCode = OK
    whole: bool = False  # in one message
    times: int = 1  # that it is sent; what was settled before is a duplicate
    edits: Sequence[Edit] = ()  # to the header's bytes
    how: object = ""

    def __repr__(self) -> str:
        return f"<{self.how!s:.300}: {self.counted or 'not counted'}, {self.outcome}>"

    def to_frames(self, work_id: pb.AssignmentId) -> list[bytes]:
        """As sent for this work; what the header's id says already, it keeps."""
        header = self._header(work_id)
        first, data = pb.UploadFrame(header=header).SerializeToString(), b"".join(self.pieces)
        if self.frames is not None:
            return [spoil_bytes(first, self.edits) if frame is HEADER else frame for frame in self.frames]
        return [first, *([data_frame(data)] if data else []), end_frame(fingerprint(data))]

    def to_whole(self, work_id: pb.AssignmentId) -> bytes:
        """The same in one message."""
        data = b"".join(self.pieces)
        upload = pb.WholeUpload(header=self._header(work_id), data=data, digest=fingerprint(data))
        return upload.SerializeToString()

    def _header(self, work_id: pb.AssignmentId) -> pb.UploadHeader:
        header = pb.UploadHeader(id=work_id)
        header.MergeFrom(self.header)
        return header


def data_frame(data: bytes) -> bytes:
    return pb.UploadFrame(data=data).SerializeToString()


def end_frame(digest: bytes) -> bytes:
    return pb.UploadFrame(end=pb.UploadEnd(digest=digest)).SerializeToString()


def honest_content(model: Model, **metrics: Any) -> RecordDict:
    told = {exchange.EXAMPLES: EXAMPLES, "loss/loss": 0.5} | metrics
    return RecordDict({exchange.MODEL: arrays.to_record(model), exchange.METRICS: MetricRecord(told)})


def to_reply(content: RecordDict) -> HostileReply:
    manifest = records.to_manifest(content, with_digests=False)
    pieces = [bytearray(array.data) for array in records.arrays_of(content)]
    return HostileReply(pb.UploadHeader(upload_id=bytes(16), manifest=manifest), pieces)


# ---- headers -----------------------------------------------------------------------------------------------

Spoil = Callable[[pb.UploadHeader, Any], object]
_RECORDS, _ARRAYS, _VALUES = "manifest.records", "manifest.arrays", "manifest.values"


def _model(header: pb.UploadHeader) -> Any:
    return header.manifest.records[0].arrays.items


def _metrics(header: pb.UploadHeader) -> Any:
    return header.manifest.records[1].metrics.entries


def _fail(header: pb.UploadHeader, **fields: Any) -> None:
    header.manifest.Clear()
    header.failure.MergeFrom(pb.Failure(**{"kind": "OSError", "reason": "x", "code": 1} | fields))


def _each(name: str, values: SearchStrategy[Any]) -> tuple[str, SearchStrategy[Any], Spoil]:
    """Sets a field of any one tensor."""
    places = st.tuples(st.integers(0, 99), values)
    return _ARRAYS, places, lambda h, v: setattr(_model(h)[v[0] % len(_model(h))], name, v[1])


def _reshape(header: pb.UploadHeader, what: tuple[int, list[int]]) -> None:
    meta = _model(header)[what[0] % len(_model(header))]
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
    (_ARRAYS, st.none(), lambda h, _: _model(h).append(_model(h)[0])),
    (_ARRAYS, st.integers(0, 99), lambda h, v: _model(h).pop(v % len(_model(h)))),
    (_ARRAYS, st.text(max_size=9), lambda h, v: _model(h).add(key=f"?{v}", dtype="float32", stype=arrays.NPY)),
    _each("key", bad_text(4000) | st.sampled_from(["", "__class__", "../x"])),
    _each("dtype", _DTYPES | bad_text(200)),
    _each("stype", _STYPES),
    _each("size", st.just(0) | st.integers(1 << 20, 1 << 40)),
    _each("digest", wrong_size(0, 16)),
    (_ARRAYS, st.tuples(st.integers(0, 99), _SHAPES), _reshape),
    (
        "manifest.size",
        st.tuples(st.integers(0, 99), HUGE_64),
        lambda h, v: setattr(_model(h)[v[0] % len(_model(h))], "size", v[1]),
    ),
    (_VALUES, st.none(), lambda h, _: _metrics(h).append(_metrics(h)[0])),
    (_VALUES, bad_text(200), lambda h, v: _metrics(h).add(key=v).scalar.MergeFrom(pb.Scalar(int=1))),
    (_VALUES, st.text(max_size=5), lambda h, v: _metrics(h).add(key=f"x{v}")),
    (_VALUES, st.none(), lambda h, _: _metrics(h)[0].list.ints.append(1)),
    (
        _VALUES,
        st.none(),
        lambda h, _: _metrics(h).add(key="two").list.MergeFrom(pb.ScalarList(ints=[1], doubles=[1])),
    ),
    (_VALUES, st.integers(4097, 4200), lambda h, n: [_metrics(h).add(key=f"k{i}") for i in range(n)]),
]
_OTHER_IDS = st.sampled_from(["run_id", "group_id", "message_type"])

# ---- contents ----------------------------------------------------------------------------------------------

_EVIL_HEADS = [
    "(" * 90,
    "'''",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 3L, }",
    "-" * 100 + "1",
    "[[1,2,",
    "0777",
    "\\",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': ('a',), 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (8, 8), }",
    "{'descr': '(2,3)f4', 'fortran_order': False, 'shape': (3,), }",
    "__import__('os').abort()",
    "",
]
_BAD_NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -3.4e38])
_BAD_LOSSES = st.sampled_from([float("nan"), float("inf"), 1.7e308, -1.7e308]) | st.just([0.5]) | st.just([1])
_BAD_EXAMPLES = st.sampled_from([-1, 0, EXAMPLES + 1, 2**40, 2**63 - 1, -(2**63), 10.0, float("nan"), [10], [0.5]])
_STRANGE_METRICS = st.sampled_from([pb.Scalar(string="ten"), pb.Scalar(bytes=b"\xff"), pb.Scalar(bool=True)])


def _change_bytes(reply: HostileReply, place: int, change: Callable[[bytearray], None]) -> None:
    change(reply.pieces[place % len(reply.pieces)])


def _replace_head(piece: bytearray, head: str) -> None:
    length = int.from_bytes(piece[8:10], "little")
    piece[10 : 10 + length] = head.encode().ljust(length)[:length]


@st.composite
def _content_attacks(draw: DrawFn, model: Model, sums: SearchStrategy[RecordDict]) -> HostileReply:
    """Form and size as agreed, and bytes that no training leaves."""
    floats = [index for index, value in enumerate(model.values()) if value.is_floating_point() and value.numel()]
    reply, place = to_reply(honest_content(model)), draw(st.sampled_from(floats))
    metrics = {entry.key: entry for entry in _metrics(reply.header)}
    ways = ("value", "head", "magic", "length", "examples", "loss", "strange", "raw", "far", "sums")
    what = draw(st.sampled_from(ways))
    match what:
        case "value":
            number = np.float32(draw(_BAD_NUMBERS)).tobytes()
            at = 4 * draw(st.integers(1, list(model.values())[place].numel()))
            end = len(reply.pieces[place]) - at
            reply.pieces[place][end : end + 4] = number
        case "head":
            head = draw(st.sampled_from(_EVIL_HEADS) | st.text(max_size=50))
            _change_bytes(reply, place, lambda piece: _replace_head(piece, head))
        case "magic":
            at, bit = draw(st.integers(0, 7)), draw(st.integers(1, 255))
            _change_bytes(reply, place, lambda piece: piece.__setitem__(at, piece[at] ^ bit))
        case "length":
            length = draw(st.integers(0, 65535).filter(lambda n: n != 118))
            _change_bytes(
                reply, place, lambda piece: piece.__setitem__(slice(8, 10), length.to_bytes(2, "little"))
            )
        case "examples":
            reply = to_reply(honest_content(model, **{exchange.EXAMPLES: draw(_BAD_EXAMPLES)}))
        case "loss":
            reply = to_reply(honest_content(model, **{"loss/loss": draw(_BAD_LOSSES)}))
        case "strange":
            metrics[draw(st.sampled_from(sorted(metrics)))].scalar.CopyFrom(draw(_STRANGE_METRICS))
        case "far":
            far = {
                key: value + draw(st.floats(2, 1000)) for key, value in model.items() if value.is_floating_point()
            }
            reply = to_reply(honest_content(Model({**model, **far})))
        case "raw":
            _model(reply.header)[place].stype = arrays.RAW_BF16
        case _:
            reply = to_reply(draw(sums))
    reply.how, reply.whole = (what, place), draw(st.booleans())
    reply.outcome, reply.counted = COMMITTED, "Upload.content"
    return reply


@st.composite
def bad_sums(draw: DrawFn, model: Model, classes: int, dim: int) -> RecordDict:
    """A good model, and class sums that no examples have."""
    sum_KD, count_K = np.zeros((classes, dim)), np.zeros(classes, np.int64)
    c = draw(st.integers(0, classes - 1))
    match draw(st.sampled_from(("long", "negative", "many", "wrap", "nan"))):
        case "long":
            count_K[c], sum_KD[c, 0] = 3, draw(st.floats(3.01, 1e300))
        case "negative":
            count_K[c] = draw(st.integers(-(2**63), -1))
        case "many":
            count_K[c] = draw(st.integers(EXAMPLES + 1, 2**63 - 1))
        case "wrap":
            count_K[:] = 2**62
        case _:
            count_K[c], sum_KD[c, -1] = 1, draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    content = honest_content(model)
    content[exchange.SUMS] = arrays.to_record(
        {"sum_KD": torch.from_numpy(sum_KD), "count_K": torch.from_numpy(count_K)}
    )
    return content


# ---- all together ------------------------------------------------------------------------------------------


@st.composite
def _header_attacks(draw: DrawFn, model: Model) -> HostileReply:
    reply = to_reply(honest_content(model))
    name, values, spoil = draw(st.sampled_from(HEADER_HURTS))
    value = draw(values)
    spoil(reply.header, value)
    reply.how, reply.whole = (name, value), draw(st.booleans())
    reply.counted = f"Upload.{name}"
    if draw(st.booleans()):  # again: it was settled
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
    """`id` is the server's to fill in, see `hostile_place.py`: here it is set only where it lies."""
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
    """One thing wrong with each."""
    contents = _content_attacks(model, bad_sums(model, classes, dim))
    return _header_attacks(model) | contents | _frame_attacks(model) | _id_attacks(model, node_id)


@st.composite
def gibberish_replies(draw: DrawFn, model: Model) -> HostileReply:
    """Frames that may be anything but a whole reply: they never end with the digest of their data."""
    reply = to_reply(honest_content(model))
    frames: list[Message] = [pb.UploadFrame(data=b"x" * 40), pb.UploadFrame(end=pb.UploadEnd(digest=b"x"))]
    reply.frames = [HEADER, *draw(st.lists(gibberish(st.sampled_from(frames)), max_size=3))]
    reply.edits = draw(EDITS | st.just([]))
    return reply
