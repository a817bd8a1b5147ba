"""What a client logs while it has no connection: at once when the cause changes, then less and less often.

Used by the link. A server that is down overnight, or has simply finished, must not fill the log.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger("fednc.client")
_LONGEST_S = 3600.0


class ReconnectLog:
    """Logs lost connections. The pause between two lines on the same cause doubles each time."""

    def __init__(self, server: str, first_pause_s: float) -> None:
        self._server, self._first_pause_s = server, first_pause_s
        self._next_at: dict[str, float] = {}  # when each cause may be logged again
        self._pause_s: dict[str, float] = {}
        self._between_runs = False

    def connected(self) -> None:
        """There is a connection: start with short pauses again."""
        self._pause_s.clear()
        self._between_runs = False

    def wait_for_next_run(self) -> None:
        """The run is over and its server ends, which is normal: log it once."""
        self._next_at.clear()
        self._between_runs = True
        log.info("waiting for the next run at %s", self._server)

    def note(self, why: str) -> None:
        """Log that a connection failed or was lost, unless the cause was logged just now."""
        now = time.monotonic()
        if self._between_runs or now < self._next_at.get(why, 0.0):
            return
        pause_s = self._pause_s.get(why, self._first_pause_s)
        self._next_at[why], self._pause_s[why] = now + pause_s, min(2 * pause_s, _LONGEST_S)
        log.info("no connection to %s (%s); trying again", self._server, why)
