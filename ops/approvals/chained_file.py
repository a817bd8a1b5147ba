"""An append-only file of events, each with the hash of the one before it, so that a change to any is noticed.

`box.py` keeps requests and verdicts in it. Knows nothing about what the events mean.

    {"n": 1, "before": "000...", "event": {...}}      one line per event; `before` is the sha256 of the line before
    head.json: {"n": 7, "sha256": "..."}              the newest line, so that removing lines from the end is
    noticed
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.files import private, private_folder, write_atomically

EVENTS, HEAD, LOCK = "approvals.jsonl", "head.json", "lock"
_START = "0" * 64


class ChangedRecordError(DataError):
    """A record that is not what was written: a line was changed, removed, inserted or moved."""


@dataclass(frozen=True)
class ChainedEvent:
    """One event. Its sha256 depends on every event before it."""

    n: int  # counts from 1
    event: Mapping[str, Any]
    sha256: str


class ChainedFile:
    """The events in a folder. Several processes may read and append at once.

    Somebody who can write to the folder can still replace all of it by another consistent record. Signatures of
    events are what they cannot make.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is made with the first event."""
        self.folder = folder

    def read(self) -> list[ChainedEvent]:
        """All events, the oldest first. Raises ChangedRecordError."""
        return self._read()[0]

    @contextmanager
    def appending(self) -> Iterator[Appender]:
        """The events, while nobody else appends. Raises ChangedRecordError, OSError."""
        private_folder(self.folder)
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Appender(self.folder, *self._read())
        finally:
            os.close(handle)

    def _read(self) -> tuple[list[ChainedEvent], int]:
        """(events, bytes of their lines). The head is read first: a line that is added meanwhile is no harm."""
        count, sha256 = self._head()
        path = self.folder / EVENTS
        data = path.read_bytes() if path.exists() else b""
        whole = data.rpartition(b"\n")[0]  # what follows was never acknowledged: its writer was killed
        events = _parsed(path, whole.split(b"\n") if whole else [])
        if len(events) < count:
            raise ChangedRecordError(f"{path}: {len(events)} of {count} events are left{_ADVICE}")
        if count and events[count - 1].sha256 != sha256:
            raise ChangedRecordError(f"{path}: line {count} is not the one that {HEAD} names{_ADVICE}")
        if not count and len(events) > 1:
            raise ChangedRecordError(f"{self.folder / HEAD} is missing{_ADVICE}")
        return events, len(whole) + bool(whole)

    def _head(self) -> tuple[int, str]:
        path = self.folder / HEAD
        if not path.exists():
            return 0, ""
        try:
            head = json.loads(path.read_bytes())
            count, sha256 = head["n"], head["sha256"]
        except (ValueError, KeyError, TypeError) as e:
            raise ChangedRecordError(f"{path} was changed{_ADVICE}") from e
        if not isinstance(count, int) or count < 1 or path.read_bytes() != _encoded_head(count, str(sha256)):
            raise ChangedRecordError(f"{path} was changed{_ADVICE}")
        return count, str(sha256)


class Appender:
    """Adds events; its holder has the lock."""

    def __init__(self, folder: Path, events: list[ChainedEvent], length: int) -> None:
        self._folder, self._length = folder, length
        self.events = events

    def add(self, event: Mapping[str, Any]) -> ChainedEvent:
        """Append one event of JSON values; it is on the disk when this returns. Raises OSError."""
        before = self.events[-1].sha256 if self.events else _START
        line = _encoded({"n": len(self.events) + 1, "before": before, "event": event})
        path = self._folder / EVENTS
        with open(path, "ab", opener=private) as file:
            file.truncate(self._length)  # what a killed process left of a line
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        added = ChainedEvent(len(self.events) + 1, event, hashlib.sha256(line).hexdigest())
        write_atomically(self._folder / HEAD, _encoded_head(added.n, added.sha256))
        self._length += len(line) + 1
        self.events.append(added)
        return added


_ADVICE = ": the record was changed or damaged. Restore it from a backup; its verdicts do not count until then"


def _parsed(path: Path, lines: list[bytes]) -> list[ChainedEvent]:
    events: list[ChainedEvent] = []
    before = _START
    for n, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            fits = (value["n"], value["before"]) == (n, before) and isinstance(value["event"], dict)
            # A line has one spelling only, so that nothing hides in blanks or in a key that comes twice.
            fits = fits and _encoded(value) == line
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise ChangedRecordError(f"{path}: line {n} does not follow from the lines before it{_ADVICE}")
        before = hashlib.sha256(line).hexdigest()
        events.append(ChainedEvent(n, value["event"], before))
    return events


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _encoded_head(count: int, sha256: str) -> bytes:
    return _encoded({"n": count, "sha256": sha256})
