"""Replies of the agreed form and size, with values that no training produces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import RecordDict
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fednc.common.wire import arrays, messages
from fednc.protos import federation_pb2 as pb
from support.hostile.replies import (
    COMMITTED,
    EXAMPLES,
    HostileReply,
    Model,
    honest_content,
    metrics_of,
    model_of,
    to_reply,
)

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
_BAD_LOSSES = st.sampled_from([float("nan"), float("inf"), 1.7e308, -1.7e308])
_UNUSABLE = ("value", "loss", "far", "not finite")
_BAD_EXAMPLES = st.sampled_from([-1, 0, EXAMPLES + 1, 2**40, 2**63 - 1, -(2**63), 10.0, float("nan"), [10], [0.5]])
_STRANGE_METRICS = st.sampled_from([pb.Scalar(string="ten"), pb.Scalar(bytes=b"\xff"), pb.Scalar(bool=True)])


def _change_bytes(reply: HostileReply, place: int, change: Callable[[bytearray], None]) -> None:
    change(reply.pieces[place % len(reply.pieces)])


def _replace_head(piece: bytearray, head: str) -> None:
    length = int.from_bytes(piece[8:10], "little")
    piece[10 : 10 + length] = head.encode().ljust(length)[:length]


@st.composite
def content_attacks(draw: DrawFn, model: Model, sums: SearchStrategy[RecordDict]) -> HostileReply:
    """The agreed form and size, with values that no training produces."""
    floats = [index for index, value in enumerate(model.values()) if value.is_floating_point() and value.numel()]
    reply, place = to_reply(honest_content(model)), draw(st.sampled_from(floats))
    metrics = {entry.key: entry for entry in metrics_of(reply.header)}
    ways = (
        *("value", "head", "magic", "length", "examples", "loss", "no number", "strange", "raw", "far", "sums"),
        "not finite",
    )
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
            reply = to_reply(honest_content(model, **{messages.EXAMPLES: draw(_BAD_EXAMPLES)}))
        case "loss":
            reply = to_reply(honest_content(model, **{"loss/loss": draw(_BAD_LOSSES)}))
        case "no number":
            reply = to_reply(honest_content(model, **{"loss/loss": draw(st.just([0.5]) | st.just([1]))}))
        case "strange":
            metrics[draw(st.sampled_from(sorted(metrics)))].scalar.CopyFrom(draw(_STRANGE_METRICS))
        case "far":
            far = {
                key: value + draw(st.floats(2, 1000)) for key, value in model.items() if value.is_floating_point()
            }
            reply = to_reply(honest_content(Model({**model, **far})))
        case "raw":
            model_of(reply.header)[place].stype = arrays.RAW_BF16
        case "not finite":
            content = honest_content(model)
            content[messages.SUMS] = draw(sums)[messages.SUMS]
            spoilt = arrays.from_record(content[messages.SUMS])
            spoilt["count_K"].zero_()
            spoilt["sum_KD"][draw(st.integers(0, len(spoilt["sum_KD"]) - 1)), -1] = draw(
                st.sampled_from([np.nan, np.inf, -np.inf])
            )
            content[messages.SUMS] = arrays.to_record(spoilt)
            reply = to_reply(content)
        case _:
            reply = to_reply(draw(sums))
    reply.how, reply.whole = (what, place), draw(st.booleans())
    # Values that are not finite or too large count against a node once the round shows that others sent none.
    reply.outcome, reply.counted = COMMITTED, "" if what in _UNUSABLE else "Upload.content"
    return reply


@st.composite
def bad_sums(draw: DrawFn, model: Model, classes: int, dim: int) -> RecordDict:
    """A good model with class sums that no examples can have."""
    sum_KD, count_K = np.zeros((classes, dim)), np.zeros(classes, np.int64)
    c = draw(st.integers(0, classes - 1))
    match draw(st.sampled_from(("long", "negative", "many", "wrap"))):
        case "long":
            count_K[0], sum_KD[0, 0] = 1, draw(st.floats(1.01, 1e300))
        case "negative":
            count_K[c] = draw(st.integers(-(2**63), -1))
        case "many":
            count_K[c] = draw(st.integers(EXAMPLES + 1, 2**63 - 1))
        case _:
            count_K[:] = 2**62
    content = honest_content(model)
    content[messages.SUMS] = arrays.to_record(
        {"sum_KD": torch.from_numpy(sum_KD), "count_K": torch.from_numpy(count_K)}
    )
    return content
