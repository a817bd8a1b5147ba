"""Operators' commands to a run, and the progress of the run.

Commands are given on the event loop and obeyed by the strategy's thread between rounds. Each attribute is written
by one of the two threads only, through the methods. Knows neither gRPC nor nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from fednc.common.errors import FedncError
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.server.storage.history import RoundRecord

Check = Callable[[Sequence[str]], None]  # checks class names for a session; raises ConfigError


class WrongMomentError(FedncError):
    """A command that does not fit the state of the run."""


class RunControl:
    """The commands that were given to one run, and its progress."""

    def __init__(self) -> None:
        self.paused = False  # the next round waits
        self.stop_wanted = False  # by an operator: no further round begins, of this run or of one after it
        self.closed = False  # the link is closing, no client can be asked any more
        self.cut = False  # this run ends now, without its last exchanges
        self.waiting = False  # between rounds, for clients or for an operator
        self.round = 0  # the current or next one
        self.session = 0  # the current one
        self.class_names: tuple[str, ...] = ()  # so far
        self.waiting_session: int | None = None  # the session that waits for an operator
        self.last: RoundRecord | None = None  # the last completed round
        self.primary = ACCURACY  # the metric that the run is judged by
        self.fold_s = 0.0  # seconds spent on aggregation in the last round
        self.clients: Mapping[str, Mapping[str, float]] = {}  # the last metrics of each, by name
        self.drifting: Mapping[str, str] = {}  # the drift alarm of each client that has one, by name
        self._check: Check = lambda _names: None
        self._started: tuple[str, ...] | None = None  # class names of the session that an operator has started

    @property
    def stopping(self) -> bool:
        """Whether no further round of this run begins."""
        return self.stop_wanted or self.closed or self.cut

    @property
    def over(self) -> bool:
        """Whether no client may be asked any more in this run."""
        return self.closed or self.cut

    # ---- commands of operators -----------------------------------------------------------------------------

    def pause(self) -> None:
        """Finish the current round, then wait."""
        self.paused = True

    def resume(self) -> None:
        """Allow the next round to begin."""
        self.paused = False

    def stop(self) -> None:
        """Finish the current round, then end the run."""
        self.stop_wanted = True

    def start_session(self, names: tuple[str, ...]) -> int:
        """Start the session that waits, and return its number. `names`: its classes, if the run file names none.

        Raises:
            WrongMomentError: no session waits.
            ConfigError: these names cannot be used.
        """
        if self.waiting_session is None or self._started is not None:
            stage = f"session {self.session}" if self.session else "its first stage"
            raise WrongMomentError(f"no session waits for an operator: the run is in {stage}")
        self._check(names)
        self._started = names
        return self.waiting_session

    # ---- progress of the run -------------------------------------------------------------------------------

    @property
    def session_is_started(self) -> bool:
        """Whether an operator has started the session that waits."""
        return self._started is not None

    def offer_session(self, number: int, check: Check) -> None:
        """Let a session wait for an operator. Class names that the operator gives must pass `check`."""
        self._check, self._started, self.waiting_session = check, None, number

    def take_session(self) -> tuple[str, ...] | None:
        """End the wait. Returns the names that an operator gave; None if no operator started the session."""
        self.waiting_session = None
        return self._started

    @contextmanager
    def between_rounds(self) -> Iterator[None]:
        """Mark the run as waiting during the block."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def enter_session(self, number: int, class_names: tuple[str, ...]) -> None:
        """The rounds of this session follow; 0 is the first stage."""
        self.session, self.class_names = number, class_names

    def begin_round(self, number: int) -> None:
        """This round begins or is tried again."""
        self.round = number

    def begin(self, primary: MetricInfo) -> None:
        """The run begins; `primary` is the metric that it is judged by."""
        self.primary = primary

    def complete(
        self,
        record: RoundRecord,
        fold_s: float,
        clients: Mapping[str, Mapping[str, float]] | None = None,
        drifting: Mapping[str, str] | None = None,
    ) -> None:
        """A round is complete; `clients`: the last metrics of each that may be listed, `drifting`: its alarm."""
        self.last, self.fold_s, self.clients, self.drifting = record, fold_s, clients or {}, drifting or {}

    def end(self) -> None:
        """The link closes: a round in progress must not count."""
        self.closed = True

    def cut_off(self) -> None:
        """End this run after the round just completed, without asking the clients anything more."""
        self.cut = True

    def next_run(self) -> None:
        """Another run follows over the same link; an operator's pause and stop hold for it too."""
        self.cut, self.round, self.session, self.class_names = False, 0, 0, ()
        self.waiting_session, self.last, self.clients, self.drifting = None, None, {}, {}
