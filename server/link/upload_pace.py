"""How fast an upload comes, and whether it may keep its place in the budget while others wait for one.

Asked by the inflow at every message. Who loses its place is not at fault: it comes back and goes on from where it
was, after those who waited.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """The pace of one upload, measured over one window after the other."""

    def __init__(
        self, floor_bytes_s: float, window_s: float, turn_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Slower than `floor_bytes_s` over `window_s` is too slow. An upload that takes more than its share of the
        budget has a turn of `turn_s`.
        """
        self._floor_bytes_s, self._window_s, self._turn_s, self._clock = floor_bytes_s, window_s, turn_s, clock
        self._began = self._since = clock()
        self._at: int | None = None  # bytes that were there when the window began
        self._slow_bytes_s: float | None = None  # the last window's pace, where that was too slow

    def note(self, received: int) -> None:
        """So many bytes are here now."""
        if self._at is None:
            self._at = received
        elapsed = self._clock() - self._since
        if elapsed >= self._window_s:
            pace = (received - self._at) / elapsed
            self._slow_bytes_s = pace if pace < self._floor_bytes_s else None
            self._since, self._at = self._clock(), received

    def problem(self, *, is_large: bool) -> str:
        """Why the upload gives its place to one that waits; empty where it need not. `is_large`: it holds more of
        the budget than a node's share.
        """
        if self._slow_bytes_s is not None:
            return f"{self._slow_bytes_s:.0f} bytes a second, fewer than {self._floor_bytes_s:.0f}"
        if is_large and self._clock() - self._began >= self._turn_s:
            return f"it has held more than a node's share of the budget for {self._turn_s:g} s"
        return ""
