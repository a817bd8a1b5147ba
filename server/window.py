"""How many bytes may be on their way at once: one window per direction, shared evenly by the transfers under way.

Used by the servicer, on the event loop. gRPC holds what is in flight twice or more, so this, not the number of
clients, is what bulk costs the server in memory. A slow peer holds its own small share and delays nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fednc.common.wire import CHUNK_BYTES

_PART_OF_BUDGET = 128
_LEAST_BYTES = 64 << 10  # below this a transfer costs more in messages than it saves in memory


class Window:
    """One direction."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes` is the run file's `ingest_mib`; a small part of it may be in flight."""
        self.total_bytes = budget_bytes // _PART_OF_BUDGET
        self.transfers = 0

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
