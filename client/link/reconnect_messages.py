"""What a client says while it has no connection: at once, when the cause changes, and then ever more rarely.

Used by the link. A server that is mended overnight must not fill a log, nor one that is simply done.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger("fednc.client")
_LONGEST_S = 3600.0


class Patience:
    """Counts the time between two lines of one cause; each pause is twice the one before."""

    def __init__(self, server: str, first_pause_s: float) -> None:
        self._server, self._first_pause_s = server, first_pause_s
        self._said: dict[str, float] = {}  # when each cause may be said again
        self._pause_s: dict[str, float] = {}
        self._between_runs = False

    def connected(self) -> None:
        """There is a connection: from now on pauses are short again."""
        self._pause_s.clear()
        self._between_runs = False

    def wait_for_next_run(self) -> None:
        """The run is over and its server goes: that is no trouble, and said once."""
        self._said.clear()
        self._between_runs = True
        log.info("waiting for the next run at %s", self._server)

    def note(self, why: str) -> None:
        """A connection could not be made or was lost."""
        now = time.monotonic()
        if self._between_runs or now < self._said.get(why, 0.0):
            return
        pause_s = self._pause_s.get(why, self._first_pause_s)
        self._said[why], self._pause_s[why] = now + pause_s, min(2 * pause_s, _LONGEST_S)
        log.info("no connection to %s (%s); trying again", self._server, why)
