"""The events of one kind among those that a test has heard or read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from fednc.server.storage.events import Event

E = TypeVar("E", bound=Event)


def of_kind(kind: type[E], events: Iterable[Event]) -> list[E]:
    """Those of `events` that are of class `kind`, in order."""
    return [event for event in events if isinstance(event, kind)]
