"""Waits between rounds: for clients, for the end of an operator's pause, for space on the disk.

Called by the run. Must not know what a round does.
"""

from __future__ import annotations

from flwr.serverapp import Grid

from fednc.common.config.tables import RoundsSection
from fednc.common.errors import QuorumError, RunFailedError
from fednc.common.files import remedy
from fednc.common.waiting import Deadline, wait_until
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.storage.checkpoint import Checkpoint, Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClassesMissing, DiskProblem, WaitingForClients

_CLIENTS_POLL_S = 0.1
_DISK_POLL_S = 2.0
_NAMED = 20  # most classes listed in one line


class ClientsWait:
    """Waits for clients before a round begins, and for the end of an operator's pause."""

    def __init__(self, rounds: RoundsSection, grid: Grid, around: Surroundings, events: EventLog) -> None:
        self._rounds, self._grid, self._around, self._events = rounds, grid, around, events
        self._reported_missing = False

    def for_returning(self) -> None:
        """After a restart, give clients time to come back, so that the next round has the same participants."""
        deadline = Deadline(self._rounds.rejoin_s)
        wait_until(lambda: self._ready >= self._around.returning, deadline, _CLIENTS_POLL_S)

    def for_clients(self, needed: int) -> bool:
        """True once `needed` clients are ready and the run is not paused; False if an operator stops it.

        Raises:
            QuorumError: too few after `wait_s`, not counting pauses.
        """
        with self._around.control.between_rounds():
            return self._for_clients(needed)

    def _for_clients(self, needed: int) -> bool:
        control, deadline = self._around.control, Deadline(self._rounds.wait_s)
        ready, reported = 0, False

        def can_go_on() -> bool:
            nonlocal ready, reported
            if control.stopping:
                return True
            if control.paused:
                deadline.restart()
                return False
            ready = self._ready
            if ready < needed and not reported:
                self._events.emit(WaitingForClients(text=f"waiting for {needed} clients, {ready} ready"))
                reported = True
            return ready >= needed

        if not wait_until(can_go_on, deadline, _CLIENTS_POLL_S):
            raise QuorumError(
                f"{ready} of {needed} clients are ready after {self._rounds.wait_s:g} s. "
                f"{self._around.who_is_there()} Start more clients, or lower rounds.min_clients, "
                "or raise rounds.wait_s."
            )
        if control.stopping:
            return False
        self._report_missing()
        return True

    def _report_missing(self) -> None:
        """Warn about classes without examples; only once, because clients that come later may have some."""
        missing = [] if self._reported_missing else self._around.missing_classes()
        self._reported_missing = True
        if missing:
            named = ", ".join(map(repr, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
            text = f"no client has training examples of {len(missing)} classes: {named}"
            self._events.emit(ClassesMissing(text=text, classes=tuple(missing)))

    @property
    def _ready(self) -> int:
        return len(list(self._grid.get_node_ids()))


def save_patiently(
    checkpoints: Checkpoints, checkpoint: Checkpoint, wait_s: float, control: RunControl, events: EventLog
) -> None:
    """Write `checkpoint`; try again as long as it cannot be written.

    Raises:
        RunFailedError: it failed for `wait_s`, or an operator stops the run in the meantime.
    """
    deadline = Deadline(wait_s)

    def is_saved() -> bool:
        try:
            checkpoints.save(checkpoint)
        except OSError as e:
            what = f"the checkpoint of round {checkpoint.round} cannot be written: {e.strerror}"
            if control.stopping or deadline.has_passed:
                raise RunFailedError(f"{what}; {remedy(e)}, then start again with the same --folder") from e
            events.emit(DiskProblem(text=f"{what}; the run waits: {remedy(e)}", errno=e.errno))
            return False
        return True

    wait_until(is_saved, deadline, _DISK_POLL_S)
