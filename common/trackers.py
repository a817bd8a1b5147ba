"""What a tracker is told of a run, and what it looks like: for those who write one.

    class Board(Tracker):
        def on_round(self, record: Round) -> None:
            self.board.log(record.metrics, step=record.round)

registered as an entry point of group `fednc.trackers` and chosen by `trackers = ["board"]` in [server]. A tracker
runs in a thread of its own. What it raises is logged and it hears no more; the run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run begins, or goes on after a restart.

    Attributes:
        run_id: name of the run's folder.
        folder: the run's folder; None for a run that writes nothing.
        config: all that bears on the result, as plain values; nothing of [server].
        digest: sha256 (hex) of it.
    """

    run_id: str
    folder: Path | None
    config: dict[str, Any]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round is over.

    Attributes:
        metrics: on the server's test data where there is some, else over what clients hold out; {} where the
            round was not evaluated.
        loss: mean loss in training; None where no client told one.
        missing: names of the clients that did not answer.
        failures: reason by client.
        bytes_up, bytes_down: that travelled in this round.
    """

    round: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    examples: int = 0
    replies: int = 0
    missing: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, kw_only=True)
class End:
    """The run is over. `problem` says why it ended too early; empty: it did not."""

    problem: str = ""


class Tracker:
    """Hears of a run. Made without arguments; what it must know of its own it reads from the environment."""

    def on_start(self, start: Start) -> None:
        """Before round 1, or before the first round after a restart."""

    def on_round(self, record: Round) -> None:
        """After each round."""

    def on_end(self, end: End) -> None:
        """Once, however the run ended. The server waits a few seconds for it."""
