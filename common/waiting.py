"""Waiting until a condition is true or a deadline has passed, by checking it at intervals.

Used by the server, the client and the benchmarks where there is no event to wait for. Knows nothing about the
condition.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """A moment `timeout_s` from now; by default it never comes."""

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
        """Start the timeout again from now."""
        self._at = time.monotonic() + self._timeout_s


def wait_until(look: Callable[[], T], deadline: Deadline, every_s: float) -> T:
    """Call `look` every `every_s` until it returns something true, or until the deadline.

    Returns the last result of `look`; a false one means that the deadline has passed. `look` is called at least
    once, and once more at the deadline. It may raise an exception to give up, and it may restart the deadline.
    """
    while True:
        is_last = deadline.has_passed
        found = look()
        if found or (is_last and deadline.has_passed):
            return found
        time.sleep(min(every_s, deadline.left_s))


async def wait_until_async(look: Callable[[], T], deadline: Deadline, every_s: float) -> T:
    """As `wait_until`, on the event loop: other tasks run while it waits."""
    while True:
        is_last = deadline.has_passed
        found = look()
        if found or (is_last and deadline.has_passed):
            return found
        await asyncio.sleep(min(every_s, deadline.left_s))
