"""What a process offers to a run beyond Flower's interface, and waiting for the clients that a run needs.

Given to the run by whoever owns the grid. Must not know strategies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from fednc.common.config.tables import RoundsSection
from fednc.common.errors import QuorumError
from fednc.server.aggregation.holdings import Declared
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.global_state import GlobalState
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClassesMissing, WaitingForClients

_POLL_S = 0.1
_NAMED = 20  # classes named in one line


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a process offers to a run beyond Flower's interface; the defaults serve every grid."""

    name_of: Callable[[int], str] = str
    declared: Callable[[int], Declared | None] = lambda _node: None  # what a node said it holds when it attended
    who_is_there: Callable[[], str] = lambda: ""
    missing_classes: Callable[[], list[str]] = list  # of which no client that is there has an example
    reject: Callable[[int, str], None] = lambda _node, _reason: None  # counts a reply that could not be used
    traffic: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes up, bytes down so far
    parts: Callable[[], Mapping[str, int]] = dict  # part of the split that each client has, by name
    agree: Callable[[GlobalState], None] = lambda _state: None  # told what clients send from now on
    checkpoints: Checkpoints | None = None
    control: RunControl = field(default_factory=RunControl)
    returning: int = 0  # clients that took part before a restart and are given time to come back


class Waiting:
    """For clients to be there before a round begins, and for an operator's pause to end."""

    def __init__(self, rounds: RoundsSection, grid: Grid, around: Surroundings, events: EventLog) -> None:
        self._rounds, self._grid, self._around, self._events = rounds, grid, around, events
        self._told_missing = False

    def for_returning(self) -> None:
        """Let those who took part before the restart come back, so that the next round is the one it would be."""
        give_up = time.monotonic() + self._rounds.rejoin_s
        while self._there < self._around.returning and time.monotonic() < give_up:
            time.sleep(_POLL_S)

    def for_clients(self, needed: int) -> bool:
        """True once so many clients are there and no operator holds the run; False when one stops it.

        Raises:
            QuorumError: after `wait_s`, pauses not counted.
        """
        self._around.control.waiting = True
        try:
            return self._for_clients(needed)
        finally:
            self._around.control.waiting = False

    def _for_clients(self, needed: int) -> bool:
        control, give_up, told = self._around.control, time.monotonic() + self._rounds.wait_s, False
        while not control.stopping:
            if control.paused:
                give_up = time.monotonic() + self._rounds.wait_s
            elif (there := self._there) >= needed:
                self._tell_missing()
                return True
            elif time.monotonic() > give_up:
                raise QuorumError(
                    f"{there} of {needed} clients are ready after {self._rounds.wait_s:g} s. "
                    f"{self._around.who_is_there()} Start more clients, or lower rounds.min_clients, "
                    "or raise rounds.wait_s."
                )
            elif not told:
                text = f"waiting for {needed} clients, {there} ready"
                self._events.emit(WaitingForClients(text=text))
                told = True
            time.sleep(_POLL_S)
        return False

    def _tell_missing(self) -> None:
        """Before the first round only: it asks every client's node, and those who come later may have them."""
        missing = [] if self._told_missing else self._around.missing_classes()
        self._told_missing = True
        if missing:
            named = ", ".join(map(repr, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
            text = f"no client trains on an example of {len(missing)} classes: {named}"
            self._events.emit(ClassesMissing(text=text, classes=tuple(missing)))

    @property
    def _there(self) -> int:
        return len(list(self._grid.get_node_ids()))
