"""Reads a growing file of JSON lines: each call returns only what is new.

Used for `events.jsonl` and `clients.jsonl` of a run that another process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fednc.ops.run_folders.folder import objects_in

_PIECE_BYTES = 4 << 20


class JsonTail:
    """The lines of one file. A line that is damaged or not yet complete is left out."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, b""
        self._file: BinaryIO | None = None

    def was_replaced(self) -> bool:
        """Whether another file has taken the place of the one that was read so far, or it became shorter."""
        if self._file is None:
            return False
        try:
            now = self._path.stat()
        except OSError:
            return True
        return now.st_ino != os.fstat(self._file.fileno()).st_ino or now.st_size < self._file.tell()

    def news(self) -> Iterator[dict[str, Any]]:
        """What was added since the last call; also what a file that was renamed got before that."""
        if self._file is not None:
            yield from self._lines()
            if not self.was_replaced():
                return
            self.close()
        try:
            self._file = self._path.open("rb")
        except OSError:
            return
        yield from self._lines()

    def _lines(self) -> Iterator[dict[str, Any]]:
        assert self._file is not None
        while piece := self._file.read(_PIECE_BYTES):
            *lines, self._rest = (self._rest + piece).split(b"\n")
            yield from objects_in(lines)

    def close(self) -> None:
        """Forget the file; the next call of `news` begins with its first line."""
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""
