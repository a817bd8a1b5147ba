"""What both ends of the link agree on besides the messages: protocol version, names, sizes, channel options."""

from __future__ import annotations

PROTOCOL = 3
ATTENDANCE_KEY = "fednc-attendance-bin"
CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 10  # small enough to travel in one message: with the assignment, and back as one upload
REMEMBERED_ASSIGNMENTS = 2  # a client keeps the blobs of its last two assignments
_MESSAGE_LIMIT_BYTES = 32 << 20  # an assignment's manifest; bulk travels in chunks
UPWARD_LIMIT_BYTES = CHUNK_BYTES + (3 << 20)  # largest message of a client: a chunk, or a reply's manifest
BEATS = 4  # heartbeats per `liveness_s`
BULK_FACTOR = 3  # a peer with a transfer under way may be silent for this many times `liveness_s`
_PING_TIMEOUT_MS = 120_000

Options = list[tuple[str, int]]


def channel_options(liveness_s: float, receive_bytes: int = _MESSAGE_LIMIT_BYTES) -> Options:
    """gRPC channel options for either end.

    Pings keep the connection open. They do not decide who is lost (`server/link/heartbeat.py` does): gRPC gives
    a ping a fixed time, but on a slow link its answer waits behind megabytes of bulk data.
    """
    return [
        ("grpc.keepalive_time_ms", int(liveness_s * 1000)),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # gRPC 1.81 obeys only this one
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
