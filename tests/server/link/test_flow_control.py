"""Bytes in flight: any number of transfers that share a window stay within it, and every one makes progress."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.wire.protocol import CHUNK_BYTES
from fednc.server.link.flow_control import Allowance, Window
from fednc.server.link.message_limits import InvalidError
from fednc.server.listener import _STREAMS_PER_CONNECTION

LEAST = 64 << 10


@given(transfers=st.integers(1, 2000), budget_mib=st.integers(1, 4096))
def test_transfers_share_the_window(transfers, budget_mib):
    window = Window(budget_mib << 20)
    with ExitStack() as stack:
        for _ in range(transfers):
            stack.enter_context(window.transfer())
        in_flight = transfers * (window.extend(-1, 0, 1 << 60))
        assert in_flight <= max(window.total_bytes, transfers * LEAST)
        assert LEAST <= window.piece_bytes() <= CHUNK_BYTES
        assert window.piece_bytes() <= window.extend(-1, 0, 1 << 60)
    assert window.transfers == 0


@given(
    size=st.integers(0, 10 << 20),
    frame=st.integers(1, 1 << 20),
    start=st.integers(0, 10 << 20),
    others=st.lists(st.integers(0, 300), min_size=1),
)
def test_a_sender_that_keeps_to_its_grants_can_send_all_bytes(size, frame, start, others):
    window, received, rounds = Window(64 << 20), min(start, size), 0
    allowance = Allowance(window, size, frame)
    while received < size or allowance.until < 0:
        window.transfers = 1 + others[rounds % len(others)]  # transfers start and end
        before = allowance.until
        assert allowance.extend(received) == (allowance.until > before)
        assert allowance.until > received or allowance.until == size
        rounds += 1
        length = min(frame, allowance.until - received)
        if length:
            allowance.check(received, length)
        received += length
    assert allowance.until <= size


@given(size=st.integers(1, 10 << 20), frame=st.integers(1, 1 << 20), others=st.integers(1, 300))
def test_no_byte_beyond_the_grant_is_accepted(size, frame, others):
    window = Window(64 << 20)
    window.transfers = others
    allowance = Allowance(window, size, frame)
    allowance.extend(0)
    with pytest.raises(InvalidError, match="at once"):
        allowance.check(0, frame + 1)
    if allowance.until < size:
        with pytest.raises(InvalidError, match="up to"):
            allowance.check(allowance.until, 1)


def test_http2_accepts_little_before_anybody_reads():
    window = Window(512 << 20)
    assert ("grpc.http2.lookahead_bytes", window.stream_bytes) in window.http2_options
    connections = 50
    assert connections * _STREAMS_PER_CONNECTION * window.stream_bytes <= 64 << 20
