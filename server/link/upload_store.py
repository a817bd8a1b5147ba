"""Uploads, on disk: received in order, resumed after a broken connection, committed whole or not at all.

Written by the upload call on the event loop, read by the grid in the strategy's thread. The folder lies on the
state directory's disk, never on tmpfs, so that replies waiting for the fold cost no memory; only small ones
stay in memory, up to a small part of the budget.
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
    """One upload under way."""

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
        """Whether all bytes are here and arrived as they were sent. Asked once, at the end."""
        return self.received == self.size and self._fingerprint.finish() == digest

    def take(self, sizes: list[int]) -> list[memoryview]:
        """The arrays as views on what was stored, which goes when the last view does."""
        view = self._store.take(self.size)
        ends = list(itertools.accumulate(sizes))
        return [view[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def rest(self) -> None:
        """Nothing is done with it for long: keep no file open."""
        self._store.rest()

    def discard(self) -> None:
        """Drop everything."""
        self._store.discard()


class FileStore:
    """Bytes on the disk. The file's name is removed when they are taken."""

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
        """All of them, read-only; nothing can follow. Raises OSError."""
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDONLY)
        self._path.unlink()
        view = memoryview(mmap.mmap(self._file, size, prot=mmap.PROT_READ)) if size else memoryview(b"")
        os.close(self._file)
        self._file, self._is_here = -1, False
        return view

    def rest(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Drop them."""
        self.rest()
        if self._is_here:
            self._is_here = False
            self._path.unlink(missing_ok=True)


class _Bytes(bytearray):
    """One that can say when nobody holds it any more."""


class MemoryStore:
    """Bytes in memory: for small uploads, of which there are many."""

    def __init__(self, free: Callable[[], None]) -> None:
        """`free` is called once, when nobody holds the bytes any more."""
        self._data = _Bytes()
        weakref.finalize(self._data, free)

    def append(self, data: Data) -> None:
        """More of them."""
        self._data += data

    def take(self, size: int) -> memoryview:
        """All of them, read-only; nothing can follow."""
        view = memoryview(self._data)[:size].toreadonly()
        self.discard()
        return view

    def rest(self) -> None:
        """It holds no file."""

    def discard(self) -> None:
        """Drop them."""
        self._data = _Bytes()
