"""Moves a run from one stage to the next: waits for an operator and for clients that hold the new classes.

Called by the run before the first round of a stage. Must not know what a task trains in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flwr.serverapp import Grid

from fednc.common.errors import ConfigError, QuorumError
from fednc.common.tasks.stages import Stage
from fednc.common.waiting import Deadline, wait_until
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClassesWithoutMemory, SessionOpened, SessionWaiting, WaitingForClients

_POLL_S = 0.2


class Sessions:
    """Opens the sessions of one run."""

    def __init__(self, strategy: FrameStrategy, control: RunControl, events: EventLog, wait_s: float) -> None:
        self._strategy, self._control, self._events, self._wait_s = strategy, control, events, wait_s

    def wait_for_operator(self, stage: Stage) -> tuple[str, ...] | None:
        """The class names once an operator starts the session; None if an operator stops the run instead."""
        control, own = self._control, self._strategy.task.registry.groups[stage.number]
        control.offer_session(stage.number, partial(self._check, stage, own))
        text = f"session {stage.number} waits for an operator to start it: fednc session next"
        self._events.emit(SessionWaiting(text=text, session=stage.number))
        wait_until(lambda: control.stopping or control.session_is_started, Deadline(), _POLL_S)
        names = control.take_session()
        return None if names is None else own or names

    def _check(self, stage: Stage, own: tuple[str, ...], names: Sequence[str]) -> None:
        """Raises ConfigError if the session cannot have these class names."""
        if own and names:
            raise ConfigError(
                f"the run file names the classes of session {stage.number}: {', '.join(own)}. Leave out --class"
            )
        if not own:
            self._strategy.task.registry.first(stage.number - 1).extended(names)

    def open(self, stage: Stage, grid: Grid) -> bool:
        """Pool the memory of the new classes once enough clients hold some; False if an operator stops the run.

        Raises:
            QuorumError: too few clients hold any after `wait_s`.
        """
        if not self._wait_for_holders(stage, grid):
            return False
        self._strategy.pool_new_classes(grid)
        names = self._strategy.task.class_names[stage.earlier : stage.classes]
        text = (
            f"session {stage.number}: {len(names)} new classes ({', '.join(names)[:200]}), rounds "
            f"{stage.first} to {stage.last}"
        )
        self._events.emit(SessionOpened(text=text, session=stage.number, classes=tuple(names)))
        self.warn(stage)
        return True

    def warn(self, stage: Stage) -> None:
        """Warn about classes that no client sent a sum of: they are trained, but not remembered."""
        if not self._strategy.task.keeps_memory:
            return
        seen_K, names = self._strategy.state.memory.seen_K, self._strategy.task.class_names
        missing = [names[c] for c in range(stage.earlier, stage.classes) if not seen_K[c]]
        if missing:
            least = self._strategy.task.min_sum_examples
            text = (
                f"no memory of {', '.join(missing)[:200]}: no client sent a sum. Clients do not send sums over "
                f"fewer than {least} examples, or fewer than their own min_sum_examples. Later sessions will not "
                "rehearse these classes"
            )
            self._events.emit(ClassesWithoutMemory(text=text, classes=tuple(missing)))

    def _wait_for_holders(self, stage: Stage, grid: Grid) -> bool:
        holders, reported = 0, False

        def can_go_on() -> bool:
            nonlocal holders, reported
            if self._control.stopping:
                return True
            holders = len(self._strategy.holders(grid))
            if holders < stage.min_clients and not reported:
                text = (
                    f"session {stage.number} waits for {stage.min_clients} clients with examples of its classes, "
                    f"{holders} have some"
                )
                self._events.emit(WaitingForClients(text=text, session=stage.number))
                reported = True
            return holders >= stage.min_clients

        if not wait_until(can_go_on, Deadline(self._wait_s), _POLL_S):
            raise QuorumError(
                f"{holders} of {stage.min_clients} clients hold examples of the classes of session "
                f"{stage.number} after {self._wait_s:g} s. Start clients that do, or lower the session's "
                "min_clients, or raise rounds.wait_s."
            )
        return not self._control.stopping
