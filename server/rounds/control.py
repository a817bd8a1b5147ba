"""What an operator asks of a run, and where the run stands.

Asked on the event loop, obeyed between rounds by the strategy's thread; each attribute is written from one side,
through the methods. Knows neither gRPC nor nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fednc.common.errors import FedncError
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.server.storage.history import RoundRecord

Check = Callable[[Sequence[str]], None]  # of the names of a session's classes; raises ConfigError


class WrongMomentError(FedncError):
    """A command that does not fit where the run stands."""


class RunControl:
    """The levers and the gauges of one run."""

    def __init__(self) -> None:
        self.paused = False  # the next round waits
        self.stopping = False  # no further round begins
        self.over = False  # nobody is left to ask
        self.waiting = False  # between rounds, for clients or for an operator
        self.round = 0  # under way or about to begin
        self.session = 0  # under way
        self.class_names: tuple[str, ...] = ()  # so far
        self.waiting_session: int | None = None  # that waits for an operator
        self.last: RoundRecord | None = None  # the round completed last
        self.primary = ACCURACY  # what the run is judged by
        self.fold_s = 0.0  # spent in its fold
        self._check: Check = lambda _names: None
        self._started: tuple[str, ...] | None = None  # names of the classes of the session that an operator starts

    # ---- what an operator asks for -------------------------------------------------------------------------

    def pause(self) -> None:
        """The round under way ends; the next one waits."""
        self.paused = True

    def resume(self) -> None:
        """The next round may begin."""
        self.paused = False

    def stop(self) -> None:
        """No round begins after the one under way."""
        self.stopping = True

    def start_session(self, names: tuple[str, ...]) -> int:
        """The session that waits begins, with classes of these names where the run file names none; its number.

        Raises:
            WrongMomentError: no session waits.
            ConfigError: these names cannot be used.
        """
        if self.waiting_session is None or self._started is not None:
            where = f"session {self.session} is under way" if self.session else "the beginning is under way"
            raise WrongMomentError(f"no session waits for an operator: {where}")
        self._check(names)
        self._started = names
        return self.waiting_session

    # ---- where the run stands ------------------------------------------------------------------------------

    @property
    def session_is_started(self) -> bool:
        """Whether an operator has started the session that waits."""
        return self._started is not None

    def offer_session(self, number: int, check: Check) -> None:
        """A session waits for an operator, whose names for its classes must pass `check`."""
        self._check, self._started, self.waiting_session = check, None, number

    def take_session(self) -> tuple[str, ...] | None:
        """The wait is over. The names that an operator gave; None where nobody started the session."""
        self.waiting_session = None
        return self._started

    @contextmanager
    def between_rounds(self) -> Iterator[None]:
        """The run waits during this block."""
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def enter_session(self, number: int, class_names: tuple[str, ...]) -> None:
        """Rounds of this session follow; 0 is the beginning."""
        self.session, self.class_names = number, class_names

    def begin_round(self, number: int) -> None:
        """This round is the next, or the first try of it failed."""
        self.round = number

    def begin(self, primary: MetricInfo) -> None:
        """The run begins; it is judged by this metric."""
        self.primary = primary

    def complete(self, record: RoundRecord, fold_s: float) -> None:
        """A round is over."""
        self.last, self.fold_s = record, fold_s

    def end(self) -> None:
        """Nobody is left to ask: a round under way must not count."""
        self.stopping = self.over = True
