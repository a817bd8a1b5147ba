"""What no honest client sends: per call, valid messages with one hostile field, and bytes that are not a message.

Each strategy gives what to send and the outcome it must have. Knows the protocol and the limits, not the server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from fednc.common.wire.protocol import PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2 as op
from fednc.server.link import message_limits

OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
TAKEN, WRONG_VERSION = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION
FORBIDDEN, UNKNOWN_NAME = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


@dataclass(frozen=True, repr=False)
class Attack:
    """One message and its outcome: the status `code`, and `counted`, the refusal that must be counted, if any."""

    message: bytes
    code: grpc.StatusCode
    counted: str = ""

    def __repr__(self) -> str:
        return f"<{self.message!r:.300}: {self.code.name} {self.counted}>"


# ---- hostile values ----------------------------------------------------------------------------------------

CONTROL = st.sampled_from(["\x00", "\x1b[2J", "\x7f", "\u202egnp.exe", "a\rb", "\u2028", "\ufeff", "\ue000"])
HUGE_64 = st.sampled_from([message_limits.COUNT + 1, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(
    message_limits.COUNT + 1, 2**64 - 1
)
NAMES_OF_NOBODY = st.sampled_from(
    [
        "../../etc/passwd",
        "/dev/null",
        "honest ",
        " honest",
        "HONEST",
        "h\u043enest",
        "fednc:operator:ops",
        "*",
        "honest/..",
    ]
)
NOT_A_SPEED = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -5e-324])


def too_long(most: int) -> SearchStrategy[str]:
    return st.tuples(st.sampled_from("a\u00e9\u4e2d\U0001f600'\"%\\"), st.integers(most + 1, most + 50)).map(
        lambda what: what[0] * what[1]
    )


def bad_text(most: int) -> SearchStrategy[str]:
    return too_long(most) | st.tuples(CONTROL, st.text("ab", max_size=3)).map("".join)


def wrong_size(*right: int, most: int = 64) -> SearchStrategy[bytes]:
    return st.integers(0, most).filter(lambda n: n not in right).map(bytes)


@dataclass(frozen=True)
class Hurt:
    """One way to make a message invalid: how it is done, and the field that the refusal must name."""

    field: str
    values: SearchStrategy[Any]
    spoil: Callable[[Any, Any], object]
    code: grpc.StatusCode = INVALID
    is_counted: bool = True


def setting(name: str, values: SearchStrategy[Any], field: str = "", **options: Any) -> Hurt:
    """Sets a field of the message; the refusal is counted under `field`."""
    return Hurt(field or name, values, lambda message, value: setattr(message, name, value), **options)


def spoilt(call: str, base: SearchStrategy[Message], hurts: Sequence[Hurt]) -> SearchStrategy[Attack]:
    """A valid message with one hostile field."""

    @st.composite
    def draw_one(draw: DrawFn) -> Attack:
        message, hurt = draw(base), draw(st.sampled_from(hurts))
        hurt.spoil(message, draw(hurt.values))
        counted = f"{call}.{hurt.field}" if hurt.is_counted else ""
        return Attack(message.SerializeToString(), hurt.code, counted)

    return draw_one()


LIES = [b"\x0a\xff\xff\xff\x7f", b"\x0b", b"\xff" * 11, b"\x12"]  # lengths, an open group, an endless number
Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "put")),
        st.floats(0, 1),
        st.sampled_from(LIES) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def spoil_bytes(message: bytes, edits: Sequence[Edit]) -> bytes:
    """The message with bytes changed, cut off or inserted, at places between its start (0) and its end (1)."""
    data = bytearray(message)
    for action, where, what in edits:
        place = int(where * len(data))
        if action == "cut":
            del data[place:]
        elif action == "put":
            data[place:place] = what
        elif place < len(data):
            data[place] ^= what[0] or 1
    return bytes(data)


def gibberish(base: SearchStrategy[Message]) -> SearchStrategy[bytes]:
    """Arbitrary bytes: random ones, or a message with a few bytes changed."""
    spoilt_ones = st.tuples(base, EDITS).map(lambda what: spoil_bytes(what[0].SerializeToString(), what[1]))
    return spoilt_ones | st.binary(max_size=60)


# ---- Attend ------------------------------------------------------------------------------------------------

ATTENDANCES = st.builds(
    pb.AttendRequest,
    protocol=st.just(PROTOCOL),
    name=st.just("stranger"),
    software=st.just(version("fednc")),
    dry_run=st.booleans(),
    tasks=st.lists(st.text("abc/1", max_size=9), max_size=3).map(lambda more: ["image/1", *more]),
    instance=st.just(b"stranger"),
)
_PARTS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


def _refused(name: str, values: SearchStrategy[Any], code: grpc.StatusCode) -> Hurt:
    return setting(name, values, code=code, is_counted=False)


def _take_part(message: pb.AttendRequest, part: tuple[int, int]) -> None:
    message.part.MergeFrom(pb.Part(index=part[0], of=part[1]))
    message.dry_run = False


BAD_ATTENDANCES = spoilt(
    "Attend",
    ATTENDANCES,
    [
        setting("name", too_long(message_limits.NAME_LENGTH) | CONTROL | st.just("")),
        _refused("name", NAMES_OF_NOBODY | st.just("honest"), FORBIDDEN),
        _refused("protocol", st.integers(0, 2**32 - 1).filter(lambda number: number != PROTOCOL), WRONG_VERSION),
        setting("software", bad_text(200)),
        setting("app", bad_text(4000)),
        _refused("app", st.text("abc/1.", min_size=1, max_size=200), TAKEN),
        setting("instance", wrong_size(*range(33), most=99)),
        Hurt("tasks", bad_text(200), lambda m, v: m.tasks.append(v)),
        Hurt("methods", bad_text(200), lambda m, v: m.methods.append(v)),
        Hurt("tasks", st.integers(1001, 1100), lambda m, n: m.tasks.extend("x" * n)),
        Hurt("part", _PARTS.filter(lambda p: p[0] >= p[1]), _take_part),
        Hurt(
            "part",
            _PARTS.filter(lambda p: p[0] < p[1]),
            _take_part,
            TAKEN,
            False,
        ),
    ],
)

# ---- Declare -----------------------------------------------------------------------------------------------

CLASSES = 10  # of the run
DECLARATIONS = st.builds(
    pb.Declaration,
    examples=st.just(1000),
    class_counts=st.lists(st.integers(0, 100), max_size=CLASSES),
    device=st.sampled_from(["cpu", "cuda:0"]),
    pid=st.integers(1, 1 << 22),
    held_out=st.integers(0, 100),
)
_TOO_MANY_EXAMPLES = st.integers((1 << 32) + 1, 2**64 - 1)

BAD_DECLARATIONS = spoilt(
    "Declare",
    DECLARATIONS,
    [
        setting("examples", _TOO_MANY_EXAMPLES),
        setting("held_out", _TOO_MANY_EXAMPLES),
        Hurt(
            "class_counts", st.integers(1001, 2**64 - 1), lambda m, v: m.class_counts.__setitem__(slice(None), [v])
        ),
        Hurt("class_counts", st.integers(11, 300), lambda m, n: m.class_counts.__setitem__(slice(None), [0] * n)),
        Hurt("class_counts", HUGE_64, lambda m, v: m.class_counts.__setitem__(slice(None), [v, 2**64 - v])),
        setting("device", bad_text(200)),
        setting("problem", bad_text(4000)),
        setting("pid", st.integers((1 << 22) + 1, 2**32 - 1)),
        setting("standing", st.integers(3, 2**31 - 1) | st.integers(-(2**31), -1)),
    ],
)

# ---- Download ----------------------------------------------------------------------------------------------

DIGESTS = st.binary(min_size=16, max_size=16)
DOWNLOADS = st.builds(pb.DownloadRequest, digests=st.lists(DIGESTS, min_size=1, max_size=3, unique=True))

BAD_DOWNLOADS = spoilt(
    "Download",
    DOWNLOADS,
    [
        Hurt("digests", wrong_size(16), lambda m, v: m.digests.append(v)),
        Hurt("digests", st.none(), lambda m, _: m.digests.append(m.digests[0])),
        Hurt("digests", DIGESTS, lambda m, v: m.digests.__setitem__(slice(None), [v]), UNKNOWN_NAME, False),
    ],
)

# ---- Report ------------------------------------------------------------------------------------------------


def progresses(node_id: int) -> SearchStrategy[pb.Progress]:
    return st.builds(
        pb.Progress,
        id=st.builds(pb.AssignmentId, node_id=st.just(node_id), run_id=st.text(max_size=3)),
        step=st.integers(0, 99),
        steps=st.just(100),
        loss=st.floats(),
        examples_per_s=st.floats(0, 1e6),
    )


def bad_progresses(node_id: int) -> SearchStrategy[Attack]:
    return spoilt(
        "Report",
        progresses(node_id),
        [
            Hurt(
                "id",
                st.integers(0, 2**64 - 1).filter(lambda v: v != node_id),
                lambda m, v: setattr(m.id, "node_id", v),
            ),
            setting("step", HUGE_64),
            setting("steps", HUGE_64),
            setting("examples_per_s", NOT_A_SPEED),
            setting("device_memory_bytes", HUGE_64),
        ],
    )


# ---- the operator's calls ----------------------------------------------------------------------------------

CONTROLS = st.builds(op.ControlRequest, drop=st.builds(op.Drop, node=st.text("xyz", min_size=9)))
ANY_NAME = NAMES_OF_NOBODY | bad_text(200) | st.text(max_size=30) | st.just("x" * 100_000)
BAD_CONTROLS = spoilt(
    "Control",
    CONTROLS,
    [
        Hurt("drop", ANY_NAME, lambda m, v: setattr(m.drop, "node", v), UNKNOWN_NAME, False),
        Hurt("readmit", ANY_NAME, lambda m, v: setattr(m.readmit, "node", v), UNKNOWN_NAME, False),
        Hurt("command", st.none(), lambda m, _: m.Clear(), INVALID, False),
    ],
)
WATCHES = st.builds(op.WatchRequest, every_s=st.floats(0, 100))
BAD_WATCHES = spoilt(
    "Watch",
    WATCHES,
    [setting("every_s", NOT_A_SPEED | st.floats() | st.just(1e308), code=OK, is_counted=False)],
)
STATUSES = st.just(op.StatusRequest())
BAD_STATUSES = st.binary(max_size=40).map(lambda data: Attack(b"\x7a" + bytes([len(data)]) + data, OK))  # field 15
