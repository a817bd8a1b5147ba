"""Keeps what a slow or growing store said for a few seconds, so that many looks at a page cost one question.

Used by `desk.py`. The question is asked in a thread: MLflow and databases block.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fednc.common.errors import FedncError
from fednc.common.peer_text import one_line

log = logging.getLogger("fednc.console")
T = TypeVar("T")


@dataclass
class Remembered(Generic[T]):
    """The answer to one question, at most `for_s` old. One thread asks at a time.

    Attributes:
        problem: why there is no answer, for people; empty if there is one.
    """

    ask: Callable[[], T]
    nothing: T
    for_s: float = 3.0
    problem: str = ""
    _answer: T | None = None
    _asked: float = -1e9
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self) -> T:
        """The answer; `nothing` if there is a problem."""
        async with self._lock:
            if time.monotonic() - self._asked > self.for_s:
                self._answer = await asyncio.to_thread(self._ask)
                self._asked = time.monotonic()
        return self.nothing if self._answer is None else self._answer

    def forget(self) -> None:
        """Ask again next time."""
        self._asked = -1e9

    def _ask(self) -> T | None:
        try:
            found = self.ask()
        except Exception as e:  # of a database, of a file that somebody else writes: the other pages go on
            if not isinstance(e, FedncError | OSError):
                log.exception("a store cannot be read")
            self.problem = one_line(e, 600) or type(e).__name__
            return None
        self.problem = ""
        return found
