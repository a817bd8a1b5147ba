"""A console that may fail: whatever happens to stdout and stderr, the run continues.

Installed once, at the start of the command. With a reader that is gone, a full disk or a closed stream, lines are
lost and nothing else; a reader that stops reading blocks a separate thread, not the run.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
from typing import Any, TextIO

from fednc.common.waiting import Deadline, wait_until

_KEPT = 2000  # pieces of text kept for a slow reader; further ones are lost
_FLUSH_S = 2.0  # how long the process waits for the reader at its end
_FLUSH_POLL_S = 0.005


class Sink:
    """A text stream that never fails. `failed`: the error by which text was lost, if any."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed: Exception | None = None

    def write(self, text: str) -> int:
        """Write the text; on failure it is lost."""
        self._put(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as e:
            self.failed = self.failed or e

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError) as e:  # the latter: the stream is closed, or cannot encode
            self.failed = self.failed or e

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class PatientSink(Sink):
    """A sink that a separate thread empties, so that writers never wait."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._queue: queue.Queue[str] = queue.Queue(_KEPT)
        self._is_parent = True
        threading.Thread(target=self._empty, name="console", daemon=True).start()
        os.register_at_fork(after_in_child=self._after_fork)

    def write(self, text: str) -> int:
        """Queue the text; it is lost if the queue is full."""
        if not self._is_parent:
            return super().write(text)
        try:
            self._queue.put_nowait(text)
        except queue.Full as e:
            self.failed = self.failed or e
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes, and `drain` waits for it."""

    def drain(self) -> None:
        """Wait until all text is written, for a limited time."""
        wait_until(
            lambda: not (self._is_parent and self._queue.unfinished_tasks), Deadline(_FLUSH_S), _FLUSH_POLL_S
        )

    def _empty(self) -> None:
        while True:
            self._put(self._queue.get())
            super().flush()
            self._queue.task_done()

    def _after_fork(self) -> None:
        self._is_parent = False  # the thread is not in the child


def guard_console() -> None:
    """Replace stdout and stderr by sinks; once."""
    for number in (0, 1, 2):
        _open_if_closed(number)
    if not isinstance(sys.stdout, Sink):
        sys.stdout = Sink(sys.stdout or _nowhere())
    if not isinstance(sys.stderr, Sink):
        sink = PatientSink(sys.stderr or _nowhere())
        sys.stderr = sink
        atexit.register(sink.drain)


def drain_console() -> None:
    """Wait for queued output, before the process ends abruptly."""
    if isinstance(sys.stderr, PatientSink):
        sys.stderr.drain()


def _open_if_closed(number: int) -> None:
    """Otherwise the next file to be opened would get this number, and what libraries print would end up in it."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
