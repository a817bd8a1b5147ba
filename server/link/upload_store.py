"""Stores uploads: received in order, resumed after a broken connection, committed completely or not at all.

Written by the upload call on the event loop, read by the grid in the strategy's thread. The folder must be on a
disk, not on tmpfs, so that replies waiting for aggregation take no memory. Only small ones stay in memory, up to a
small part of the budget.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from fednc.common.errors import ProtocolError
from fednc.common.wire.checksum import Fingerprint
from fednc.common.wire.framing import Data


class SpooledUpload:
    """One upload in progress."""

    def __init__(self, store: MemoryStore | FileStore, upload_id: bytes, size: int) -> None:
        self.upload_id, self.size = upload_id, size
        self.received = 0
        self._fingerprint = Fingerprint()
        self._store = store

    def append(self, data: Data) -> None:
        """Add the next bytes.

        Raises:
            ProtocolError: more bytes than the header declared.
            OSError: the disk is full.
        """
        if self.received + len(data) > self.size:
            raise ProtocolError(f"more than the declared {self.size} bytes")
        self._fingerprint.update(data)
        self._store.append(data)
        self.received += len(data)

    def is_intact(self, digest: bytes) -> bool:
        """Whether all bytes have arrived, undamaged. Call this once, at the end."""
        return self.received == self.size and self._fingerprint.finish() == digest

    def take(self, sizes: list[int]) -> list[memoryview]:
        """The arrays as views of the stored bytes, which are freed with the last view."""
        view = self._store.take(self.size)
        ends = list(itertools.accumulate(sizes))
        return [view[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def close_file(self) -> None:
        """Close the file while the upload waits."""
        self._store.close_file()

    def discard(self) -> None:
        """Drop everything."""
        self._store.discard()


class FileStore:
    """Bytes in a file, which is unlinked when they are taken."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._is_here = True

    def append(self, data: Data) -> None:
        """Raises OSError: the disk is full."""
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            view = view[written:]

    def take(self, size: int) -> memoryview:
        """All bytes, read-only. Nothing can be appended after this. Raises OSError."""
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY)
        self._path.unlink()
        view = memoryview(mmap.mmap(self._file, size, prot=mmap.PROT_READ)) if size else memoryview(b"")
        os.close(self._file)
        self._file, self._is_here = -1, False
        return view

    def close_file(self) -> None:
        """Close the file; `take` opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Delete the file."""
        self.close_file()
        if self._is_here:
            self._is_here = False
            self._path.unlink(missing_ok=True)


class _Bytes(bytearray):
    """A bytearray that supports weak references."""


class MemoryStore:
    """Bytes in memory, for small uploads."""

    def __init__(self, free: Callable[[], None]) -> None:
        """`free` is called once, when the bytes are no longer referenced."""
        self._data = _Bytes()
        weakref.finalize(self._data, free)

    def append(self, data: Data) -> None:
        """Add bytes."""
        self._data += data

    def take(self, size: int) -> memoryview:
        """All bytes, read-only. Nothing can be appended after this."""
        view = memoryview(self._data)[:size].toreadonly()
        self.discard()
        return view

    def close_file(self) -> None:
        """Do nothing: there is no file."""

    def discard(self) -> None:
        """Release the bytes."""
        self._data = _Bytes()
