"""Content-addressed blobs that clients may download. Each is stored once, as long as some work refers to it.

Filled by the grid, read by the download call. Runs on the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from fednc.common.wire.arrays import Buffer


class BlobStore:
    """Blobs by fingerprint, with a reference count by batch of work."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, Buffer] = {}
        self._uses: Counter[bytes] = Counter()

    def hold(self, blobs: Mapping[bytes, Buffer]) -> None:
        """Add a reference to each of these blobs."""
        for digest, data in blobs.items():
            self._blobs.setdefault(digest, data)
            self._uses[digest] += 1

    def release(self, digests: Iterable[bytes]) -> None:
        """Drop a reference to each; the last one frees the bytes."""
        for digest in digests:
            self._uses[digest] -= 1
            if self._uses[digest] <= 0:
                del self._uses[digest], self._blobs[digest]

    def __getitem__(self, digest: bytes) -> Buffer:
        """The bytes of a blob that some work refers to."""
        return self._blobs[digest]

    def get(self, digest: bytes) -> Buffer | None:
        """The bytes of a blob, or None if no work refers to it any more."""
        return self._blobs.get(digest)
