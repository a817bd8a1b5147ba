"""What happened, in order: one line per decision for people, one JSON object per line for machines.

Every part of the server emits here, from the event loop and from the strategy's thread; the live table and the
operator service listen. Knows nothing of what the events mean.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

log = logging.getLogger("fednc.server")

Event = dict[str, Any]


class EventLog:
    """Appends events to `events.jsonl` and hands them to listeners. Safe from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._listeners: list[Callable[[Event], None]] = []
        self._file: TextIO | None = path.open("a", encoding="utf-8", buffering=1) if path else None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the log was opened."""
        return time.monotonic() - self._started

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every later event, from the thread that emits it."""
        self._listeners.append(listener)

    def emit(self, kind: str, text: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
        """Record one event: `text` for people, `fields` for machines."""
        event: Event = {
            "at": round(time.time(), 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "kind": kind,
            "text": text,
            **fields,
        }
        with self._lock:
            if self._file:
                with suppress(OSError):  # a full disk must not end the run; it was logged, and listeners hear it
                    self._file.write(json.dumps(event, default=str) + "\n")
        log.log(level, text)
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        """Flush and close the file; later events still reach the listeners."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None


class NodeEvents:
    """Records what nodes cause: one that causes thousands of events must not fill the disk with them."""

    def __init__(self, events: EventLog, at_once: float = 200, per_s: float = 0.5) -> None:
        """So many events of one node at once, and so many per second after that."""
        self._events, self._at_once, self._per_s = events, at_once, per_s
        self._accounts: dict[str, _Account] = {}

    def emit(self, kind: str, text: str, /, *, node: str, level: int = logging.INFO, **fields: Any) -> None:
        """Record one event, or count it as left out."""
        now = time.monotonic()
        account = self._accounts.setdefault(node, _Account(self._at_once, now))
        account.left = min(self._at_once, account.left + (now - account.at) * self._per_s)
        account.at = now
        if account.left < 1:
            account.unsaid += 1
            return
        account.left -= 1
        if account.unsaid:
            text = f"{text} ({account.unsaid} more about {node} before, not recorded)"
            fields["unsaid"], account.unsaid = account.unsaid, 0
        self._events.emit(kind, text, level=level, node=node, **fields)


@dataclass
class _Account:
    left: float  # events that may be recorded now
    at: float  # when that was
    unsaid: int = 0
