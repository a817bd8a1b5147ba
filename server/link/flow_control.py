"""Limits the bytes in flight: one window per direction, shared evenly by the current transfers.

Used by the servicer on the event loop. gRPC holds data in flight twice or more, so this window, not the number of
clients, decides how much memory transfers take. A slow peer holds its own small share and delays no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fednc.common.wire.protocol import CHUNK_BYTES, Options
from fednc.server.link.message_limits import require

_PART_OF_BUDGET = 128
_LEAST_BYTES = 64 << 10  # smaller pieces cost more in messages than they save in memory


class Window:
    """One direction."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes` is `ingest_mib` of the run file; a small part of it may be in flight."""
        self.total_bytes = budget_bytes // _PART_OF_BUDGET
        # HTTP/2 accepts this much before anything is read, also from strangers. Peers that we read from may have a
        # whole message in flight.
        self.stream_bytes = _LEAST_BYTES
        self.transfers = 0

    @property
    def http2_options(self) -> Options:
        """Options that fix HTTP/2's window at gRPC's initial size. By default gRPC estimates the capacity of the
        line, and the window can grow to a gibibyte per stream.
        """
        return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", self.stream_bytes)]

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """One more transfer shares the window while the block runs."""
        self.transfers += 1
        try:
            yield
        finally:
            self.transfers -= 1

    def piece_bytes(self, peers: int = 0) -> int:
        """The largest message if every transfer, or every peer, has one in flight. Peers count because gRPC keeps
        a buffer for each connection, as large as the largest message it has received.
        """
        return min(CHUNK_BYTES, self._part(max(peers, self.transfers)))

    def extend(self, granted: int, received: int, size: int) -> int:
        """Up to which of its `size` bytes a sender may go on; extended once it has used half of its grant."""
        share = self._part(self.transfers)
        if granted >= 0 and (received == size or granted - received > share // 2):
            return granted
        return min(size, received + share)

    def _part(self, of: int) -> int:
        return max(_LEAST_BYTES, self.total_bytes // max(1, of))


class Allowance:
    """What one upload may send: up to which byte, and how much in one message. More is rejected.

    Grants are sent early, so a sender that does not wait for them may go unnoticed. It gains nothing: HTTP/2's own
    window holds back what it sends too early, see `Window.stream_bytes`.
    """

    def __init__(self, window: Window, size: int, frame_bytes: int) -> None:
        self._window, self._size, self.frame_bytes = window, size, frame_bytes
        self.until = -1  # nothing granted yet

    def extend(self, received: int) -> bool:
        """Extend the grant; whether the sender must be told a new `until`."""
        before, self.until = self.until, self._window.extend(self.until, received, self._size)
        return self.until != before

    def check(self, received: int, length: int) -> None:
        """Raises InvalidError if a message of `length` bytes after the `received` ones exceeds the grant."""
        require("grant", length <= self.frame_bytes, f"{length} bytes at once; {self.frame_bytes} were granted")
        fits = received + length <= self.until or self.until == self._size  # the store checks the declared size
        require("grant", fits, f"byte {received + length} was sent; bytes up to {self.until} were granted")
