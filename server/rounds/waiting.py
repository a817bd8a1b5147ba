"""What a run waits for between rounds: clients, an operator's pause to end, space on the disk.

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
_NAMED = 20  # classes named in one line


class ClientsWait:
    """Waits for clients to be there before a round begins, and for an operator's pause to end."""

    def __init__(self, rounds: RoundsSection, grid: Grid, around: Surroundings, events: EventLog) -> None:
        self._rounds, self._grid, self._around, self._events = rounds, grid, around, events
        self._told_missing = False

    def for_returning(self) -> None:
        """Let those who took part before the restart come back, so that the next round is the one it would be."""
        deadline = Deadline(self._rounds.rejoin_s)
        wait_until(lambda: self._there >= self._around.returning, deadline, _CLIENTS_POLL_S)

    def for_clients(self, needed: int) -> bool:
        """True once so many clients are there and no operator holds the run; False when one stops it.

        Raises:
            QuorumError: after `wait_s`, pauses not counted.
        """
        with self._around.control.between_rounds():
            return self._for_clients(needed)

    def _for_clients(self, needed: int) -> bool:
        control, deadline = self._around.control, Deadline(self._rounds.wait_s)
        there, told = 0, False

        def can_go_on() -> bool:
            nonlocal there, told
            if control.stopping:
                return True
            if control.paused:
                deadline.restart()
                return False
            there = self._there
            if there < needed and not told:
                self._events.emit(WaitingForClients(text=f"waiting for {needed} clients, {there} ready"))
                told = True
            return there >= needed

        if not wait_until(can_go_on, deadline, _CLIENTS_POLL_S):
            raise QuorumError(
                f"{there} of {needed} clients are ready after {self._rounds.wait_s:g} s. "
                f"{self._around.who_is_there()} Start more clients, or lower rounds.min_clients, "
                "or raise rounds.wait_s."
            )
        if control.stopping:
            return False
        self._tell_missing()
        return True

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


def save_patiently(
    checkpoints: Checkpoints, checkpoint: Checkpoint, wait_s: float, control: RunControl, events: EventLog
) -> None:
    """Write `checkpoint`, again and again while there is no space for it.

    Raises:
        RunFailedError: after `wait_s`, or where an operator stops the run meanwhile.
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
