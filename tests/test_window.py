"""Bytes in flight: however many transfers share a window, together they keep within it, and every one gets on."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from fednc.common.wire import CHUNK_BYTES
from fednc.server.window import Window

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
    size=st.integers(0, 10 << 20), frame=st.integers(1, 1 << 20), start=st.integers(0, 10 << 20),
    others=st.lists(st.integers(0, 300), min_size=1),
)  # fmt: skip
def test_a_sender_that_keeps_to_its_grants_gets_all_bytes_through(size, frame, start, others):
    window, received, granted, rounds = Window(64 << 20), min(start, size), -1, 0
    while received < size or granted < 0:
        window.transfers = 1 + others[rounds % len(others)]  # come and go
        extended = window.extend(granted, received, size)
        assert extended >= granted
        assert extended > received or extended == size
        granted, rounds = extended, rounds + 1
        received += min(frame, granted - received)
    assert granted <= size
