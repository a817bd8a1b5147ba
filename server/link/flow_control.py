"""How many bytes may be on their way at once: one window per direction, shared evenly by the transfers under way.

Used by the servicer, on the event loop. gRPC holds what is in flight twice or more, so this, not the number of
clients, is what bulk costs the server in memory. A slow peer holds its own small share and delays nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fednc.common.wire.protocol import CHUNK_BYTES, Options
from fednc.server.link.message_limits import require

_PART_OF_BUDGET = 128
_LEAST_BYTES = 64 << 10  # below this a transfer costs more in messages than it saves in memory


class Window:
    """One direction."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes` is the run file's `ingest_mib`; a small part of it may be in flight."""
        self.total_bytes = budget_bytes // _PART_OF_BUDGET
        # What HTTP/2 takes before anybody reads, also from strangers. Whoever is read may send a whole message.
        self.stream_bytes = _LEAST_BYTES
        self.transfers = 0

    @property
    def http2_options(self) -> Options:
        """HTTP/2's own windows, within ours: fixed at the start, as gRPC has it, instead of its guess of what the
        line can carry, which grows to a gibibyte per stream.
        """
        return [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", self.stream_bytes)]

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """One more shares the window while the block runs."""
        self.transfers += 1
        try:
            yield
        finally:
            self.transfers -= 1

    def piece_bytes(self, peers: int = 0) -> int:
        """Size of one message, of which there is one at each transfer, or at each peer: gRPC's reading end keeps
        room for the largest message that a connection has seen, for as long as it lasts.
        """
        return min(CHUNK_BYTES, self._part(max(peers, self.transfers)))

    def extend(self, granted: int, received: int, size: int) -> int:
        """Up to which of its `size` bytes a sender may go on, once it has used up half of what it was granted."""
        share = self._part(self.transfers)
        if granted >= 0 and (received == size or granted - received > share // 2):
            return granted
        return min(size, received + share)

    def _part(self, of: int) -> int:
        return max(_LEAST_BYTES, self.total_bytes // max(1, of))


class Allowance:
    """What one upload may send: up to where, and how much in one message. Not a byte more is taken.

    Grants come before they are needed, so a sender that does not wait for them is not always found out. It gains
    nothing: what it sends ahead is held up by HTTP/2's own window, see `Window.stream_bytes`.
    """

    def __init__(self, window: Window, size: int, frame_bytes: int) -> None:
        self._window, self._size, self.frame_bytes = window, size, frame_bytes
        self.until = -1  # nothing is granted yet

    def extend(self, received: int) -> bool:
        """Whether the sender is to be told a new `until`."""
        before, self.until = self.until, self._window.extend(self.until, received, self._size)
        return self.until != before

    def check(self, received: int, length: int) -> None:
        """Raises InvalidError: a message of so many bytes after those received is more than was granted."""
        require("grant", length <= self.frame_bytes, f"{length} bytes at once; {self.frame_bytes} were granted")
        fits = received + length <= self.until or self.until == self._size  # then it is the header that it breaks
        require("grant", fits, f"byte {received + length} was sent; granted were bytes up to {self.until}")
