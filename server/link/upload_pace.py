"""Measures the speed of an upload, and decides whether it may keep its place in the budget while others wait.

Checked at every message of an upload. Losing the place is not a penalty: the client comes back and resumes the
upload after those that waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """The speed of one upload, measured in consecutive windows."""

    def __init__(
        self, floor_bytes_s: float, window_s: float, turn_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """An upload is too slow below `floor_bytes_s` over `window_s`. One that holds more than a node's share of
        the budget may take `turn_s`.
        """
        self._floor_bytes_s, self._window_s, self._turn_s, self._clock = floor_bytes_s, window_s, turn_s, clock
        self._began = self._since = clock()
        self._at: int | None = None  # bytes received when the window began
        self._slow_bytes_s: float | None = None  # speed in the last window, if it was too slow

    def note(self, received: int) -> None:
        """Note how many bytes have been received by now."""
        if self._at is None:
            self._at = received
        elapsed = self._clock() - self._since
        if elapsed >= self._window_s:
            pace = (received - self._at) / elapsed
            self._slow_bytes_s = pace if pace < self._floor_bytes_s else None
            self._since, self._at = self._clock(), received

    def problem(self, *, is_large: bool) -> str:
        """Why the upload must give up its place to one that waits; empty if it need not. `is_large`: it holds more
        than a node's share of the budget.
        """
        if self._slow_bytes_s is not None:
            return f"it sends {self._slow_bytes_s:.0f} bytes per second, less than {self._floor_bytes_s:.0f}"
        if is_large and self._clock() - self._began >= self._turn_s:
            return f"it has held more than a node's share of the budget for {self._turn_s:g} s"
        return ""
