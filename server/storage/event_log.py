"""The event log of a run: a log line per event for people, a JSON object per line for machines.

All parts of the server emit events here, from the event loop and from the strategy's thread. The live table and
Prometheus listen. The kinds of events are in `events.py`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from fednc.common.files import private
from fednc.common.peer_text import one_line
from fednc.server.storage.events import DiskProblem, Event, NodeEvent, event_of

log = logging.getLogger("fednc.server")


class EventLog:
    """Appends events to `events.jsonl` and passes them to listeners. Thread-safe."""

    def __init__(self, path: Path | None = None, file_mib: int = 64, kept_files: int = 3) -> None:
        """A file that reaches `file_mib` is renamed to `events.jsonl.1`, `.1` to `.2`, up to `kept_files`."""
        self._most_bytes, self._kept = file_mib << 20, kept_files
        self._path, self._bytes = path, 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._listeners: list[Callable[[Event], None]] = []
        self._file: TextIO | None = self._open() if path else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the log was opened."""
        return time.monotonic() - self._started

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every later event, from the thread that emits it."""
        self._listeners.append(listener)

    def emit(self, event: Event, *, level: int | None = None) -> None:
        """Record one event. Its text is reduced to one line, because it may quote a client.

        Args:
            level: of the log line, if it differs from the level of the event's class.
        """
        event = replace(event, text=one_line(event.text))
        line = {
            "at": round(time.time(), 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "kind": event.kind,
            **event.fields(),
        }
        with self._lock:
            if self._file:
                with suppress(
                    OSError
                ):  # a full disk must not end the run; the log and the listeners get the event
                    self._write(json.dumps(line, default=str) + "\n")
        log.log(event.level if level is None else level, "%s", event.text)
        for listener in self._listeners:
            listener(event)

    def _open(self) -> TextIO:
        assert self._path is not None
        handle = private(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        file = os.fdopen(handle, "a", encoding="utf-8", buffering=1)
        self._bytes = self._path.stat().st_size
        return file

    def _write(self, line: str) -> None:
        assert self._file is not None
        if self._bytes and self._bytes + len(line) > self._most_bytes:
            self._rotate()
        self._file.write(line)
        self._bytes += len(line)  # ASCII

    def _rotate(self) -> None:
        assert self._path is not None
        assert self._file is not None
        places = [self._path, *older_first(self._path, self._kept)[::-1]]
        for source, target in reversed(list(itertools.pairwise(places))):
            if source.exists():
                source.replace(target)
        if not self._kept:
            self._path.unlink()
        self._file.close()
        self._file = self._open()

    def close(self) -> None:
        """Close the file. Later events still reach the listeners."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None


def older_first(path: Path, kept: int) -> list[Path]:
    """Paths of the rotated files, oldest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(kept, 0, -1)]


def read_events(folder: Path) -> Iterator[Event]:
    """The events in a run's folder, oldest first, including rotated files. Unknown kinds are skipped.

    Raises:
        DataError, ValueError: a line is damaged.
    """
    current = folder / "events.jsonl"
    older = sorted(folder.glob("events.jsonl.*"), key=lambda path: -int(path.suffix[1:]))
    for path in [*older, current]:
        if path.exists():
            found = (event_of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
            yield from (event for event in found if event)


class NodeEvents:
    """Records events caused by nodes, with a limit per node so that none can fill the disk."""

    def __init__(self, events: EventLog, at_once: float = 200, per_s: float = 0.5, event_bytes: int = 512) -> None:
        """Limit each node's events.

        Args:
            at_once: events of one node that may be recorded in a burst.
            per_s: events of one node that may be recorded per second after that.
            event_bytes: a longer event counts as several.
        """
        self._events, self._at_once, self._per_s, self._event_bytes = events, at_once, per_s, event_bytes
        self._accounts: dict[str, _Account] = {}

    def emit(self, event: NodeEvent | DiskProblem) -> None:
        """Record one event, or count it as not recorded."""
        now, node = time.monotonic(), event.node or ""
        account = self._accounts.setdefault(node, _Account(self._at_once, now))
        account.left = min(self._at_once, account.left + (now - account.at) * self._per_s)
        account.at = now
        if account.left < 1:
            account.unsaid += 1
            return
        account.left -= max(
            1.0, len(json.dumps(event.fields(), default=str)) / self._event_bytes
        )  # may go negative
        if account.unsaid:
            text = f"{event.text} ({account.unsaid} earlier events of {node} were not recorded)"
            event, account.unsaid = replace(event, text=text, unsaid=account.unsaid), 0
        self._events.emit(event)


@dataclass
class _Account:
    left: float  # events that may be recorded now
    at: float  # when `left` was last updated
    unsaid: int = 0  # events not recorded since the last recorded one
