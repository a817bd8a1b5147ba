"""What passes between the link and the app that runs in it: progress out, cancellation in.

A Flower ClientApp gets only a message and a context. These hooks are all it has besides; on stock Flower, where no
link sets them, they do nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from fednc.common.errors import FedncError
from fednc.common.waiting import Deadline, wait_until

_HOLD_POLL_S = 0.1


class WorkCancelledError(FedncError):
    """The server no longer needs this work."""


class AppFailedError(Exception):
    """A failure of a foreign app: `kind` is the class of the exception that it raised in its own process."""

    def __init__(self, kind: str, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.kind, self.code = kind, code


@dataclass(frozen=True)
class LocalProgress:
    """How far local work is."""

    step: int
    steps: int
    loss: float
    examples_per_s: float
    device_memory_bytes: int = 0


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class Hooks:
    """What the link offers the work that it runs."""

    report: Callable[[LocalProgress], None] = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=_set_event)  # cleared: work is on hold

    def check(self) -> None:
        """Wait while the client is paused; called before each batch. Raises WorkCancelledError."""
        wait_until(lambda: self.cancelled.is_set() or self.running.wait(_HOLD_POLL_S), Deadline(), every_s=0)
        if self.cancelled.is_set():
            raise WorkCancelledError("cancelled by the server")


CURRENT: ContextVar[Hooks] = ContextVar("fednc_hooks", default=Hooks())  # noqa: B039 - never set in place
