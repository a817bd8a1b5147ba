"""Blobs that this client already has, so that a frame or an unchanged model is sent once. Used by the worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fednc.common.wire.arrays import Buffer
from fednc.common.wire.protocol import REMEMBERED_ASSIGNMENTS


class BlobCache:
    """Blobs of the last few assignments, by fingerprint."""

    def __init__(self, remembered_assignments: int = REMEMBERED_ASSIGNMENTS) -> None:
        self._blobs: dict[bytes, Buffer] = {}
        self._recent: deque[frozenset[bytes]] = deque(maxlen=remembered_assignments)

    def lacking(self, digests: Iterable[bytes]) -> list[bytes]:
        """The digests to download, each once, in order."""
        return [d for d in dict.fromkeys(digests) if d not in self._blobs]

    def add(self, digest: bytes, data: Buffer) -> None:
        """Keep one blob until enough assignments have not used it."""
        self._blobs[digest] = data

    def __getitem__(self, digest: bytes) -> Buffer:
        """One blob, read-only: the next assignment may use it too."""
        return memoryview(self._blobs[digest]).toreadonly()

    def settle(self, digests: Iterable[bytes]) -> None:
        """An assignment with these blobs is complete; drop those that the last few assignments did not use."""
        self._recent.append(frozenset(digests))
        wanted = frozenset().union(*self._recent)
        places = {_place(self._blobs.pop(digest)) for digest in set(self._blobs) - wanted}
        for digest, data in self._blobs.items():
            if _place(data) in places:  # blobs of one download share memory, which would stay whole
                self._blobs[digest] = bytes(data)


def _place(data: Buffer) -> int:
    return id(memoryview(data).obj)
