"""What an operator asks of a run, and where the run stands.

Asked on the event loop, obeyed between rounds by the strategy's thread; each attribute is written from one side.
Knows neither gRPC nor nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fednc.common.tasks.metric_info import ACCURACY
from fednc.server.storage.history import RoundRecord


class RunControl:
    """The levers and the gauges of one run."""

    def __init__(self) -> None:
        self.paused = False  # the next round waits
        self.stopping = False  # no further round begins
        self.over = False  # nobody is left to ask
        self.waiting = False  # between rounds, for clients or for an operator
        self.round = 0  # under way or about to begin
        self.waiting_session: int | None = None  # that waits for an operator
        self.started: tuple[str, ...] | None = (
            None  # an operator starts it, with classes of these names or its own
        )
        self.check_session: Callable[[Sequence[str]], None] = lambda _names: None  # raises ConfigError
        self.session = 0  # under way
        self.class_names: tuple[str, ...] = ()  # so far
        self.last: RoundRecord | None = None  # the round completed last
        self.primary = ACCURACY  # what the run is judged by
        self.fold_s = 0.0  # spent in its fold

    def end(self) -> None:
        """Nobody is left to ask: a round under way must not stand as one."""
        self.stopping = self.over = True

    def complete(self, record: RoundRecord, fold_s: float) -> None:
        """A round is over."""
        self.last, self.fold_s = record, fold_s
