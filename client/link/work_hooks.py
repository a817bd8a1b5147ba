"""The channel between the link and the app that runs inside it: progress out, cancellation in.

A Flower ClientApp gets only a message and a context. What it may do beyond that it finds here; on stock Flower,
where no link sets the hook, everything is a no-op.
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
    """The server no longer waits for this work."""


class AppFailedError(Exception):
    """A foreign app's own failure: `kind` is the class of the exception that it raised, elsewhere."""

    def __init__(self, kind: str, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.kind, self.code = kind, code


@dataclass(frozen=True)
class LocalProgress:
    """How far local work has come."""

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
    """What the link offers to the work that it runs."""

    report: Callable[[LocalProgress], None] = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=_set_event)  # cleared: hold

    def check(self) -> None:
        """Hold while the client is paused; called at every batch. Raises WorkCancelledError: no longer wanted."""
        wait_until(lambda: self.cancelled.is_set() or self.running.wait(_HOLD_POLL_S), Deadline(), every_s=0)
        if self.cancelled.is_set():
            raise WorkCancelledError("cancelled by the server")


CURRENT: ContextVar[Hooks] = ContextVar("fednc_hooks", default=Hooks())  # noqa: B039 - never set in place
