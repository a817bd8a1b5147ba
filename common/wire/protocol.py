"""What both ends of the link agree on besides the messages: versions, names, sizes, channel options."""

from __future__ import annotations

import ipaddress

PROTOCOL = 2
ATTENDANCE_KEY = "fednc-attendance-bin"
CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 10  # what is no bulk: it comes with its assignment, and goes back in one message
REMEMBERED_ASSIGNMENTS = 2  # whose blobs a client keeps
SHORT_TEXT, LONG_TEXT = 200, 4000  # characters in names and in reasons
_MESSAGE_LIMIT_BYTES = 32 << 20  # an assignment's manifest; bulk travels in chunks
UPWARD_LIMIT_BYTES = CHUNK_BYTES + (3 << 20)  # what a client may say at once: a chunk, or a reply's manifest
BEATS = 4  # signs of life per `liveness_s`
BULK_FACTOR = 3  # times `liveness_s` that a peer may be silent while it has bulk data on the way
_PING_TIMEOUT_MS = 120_000
_LAYOUT = {ord("\n"): " ", ord("\t"): " "}

Options = list[tuple[str, int]]


def is_plain(text: str) -> bool:
    """Whether a terminal shows the text as it is: no control characters but newline and tab."""
    return text.isprintable() or text.translate(_LAYOUT).isprintable()


def plain(text: str, most: int) -> str:
    """The text as it may travel: at most so many characters, control characters replaced."""
    text = text[:most]
    return text if is_plain(text) else "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def one_line(text: object, most: int | None = None) -> str:
    """The text as one line that a terminal shows as it is: what others say can neither start a line nor steer it.

    Control characters, line separators, bidirectional controls and lone surrogates become U+FFFD; newlines and
    tabs become spaces.
    """
    line = str(text).translate(_LAYOUT)
    line = line if most is None or len(line) <= most else line[: max(0, most - 1)] + "\u2026"
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can only be reached from its own machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_options(liveness_s: float, receive_bytes: int = _MESSAGE_LIMIT_BYTES) -> Options:
    """Options for either end.

    Pings keep the connection open on its way. They do not decide who is lost (see `server/link/heartbeat.py`):
    gRPC gives a ping a fixed time, while on a slow link its answer waits behind megabytes of bulk data.
    """
    return [
        ("grpc.keepalive_time_ms", int(liveness_s * 1000)),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # gRPC 1.81 heeds this one only
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 50),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_receive_message_length", receive_bytes),
        ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.so_reuseport", 0),
        ("grpc.max_metadata_size", 16 << 10),
    ]
