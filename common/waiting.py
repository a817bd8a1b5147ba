"""Waiting for what another thread or process brings about, by looking again and again until a deadline.

Used by the server, the client and the benchmarks wherever there is no event to wait for. Knows nothing of what
they wait for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """A moment `timeout_s` from now; without one it never comes."""

    def __init__(self, timeout_s: float = math.inf) -> None:
        self._timeout_s = timeout_s
        self._at = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; 0 once it has passed."""
        return max(0.0, self._at - time.monotonic())

    @property
    def has_passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s == 0

    def restart(self) -> None:
        """Count the timeout from now again."""
        self._at = time.monotonic() + self._timeout_s


def wait_until(look: Callable[[], T], deadline: Deadline, every_s: float) -> T:
    """Call `look` every `every_s` until it returns something true, or until the deadline.

    Returns what `look` returned last: something false means that the deadline has passed. `look` is called at
    least once, and once more at the deadline itself. It may raise to give up, and it may restart the deadline.
    """
    while True:
        is_last = deadline.has_passed
        found = look()
        if found or (is_last and deadline.has_passed):
            return found
        time.sleep(min(every_s, deadline.left_s))


async def wait_until_async(look: Callable[[], T], deadline: Deadline, every_s: float) -> T:
    """`wait_until` on the event loop: others run while it waits."""
    while True:
        is_last = deadline.has_passed
        found = look()
        if found or (is_last and deadline.has_passed):
            return found
        await asyncio.sleep(min(every_s, deadline.left_s))
