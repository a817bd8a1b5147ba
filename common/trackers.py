"""The interface of trackers: plug-ins that are told about each round of a run.

    class Board(Tracker):
        def on_round(self, record: Round) -> None:
            self.board.log(record.metrics, step=record.round)

registered as an entry point of group `fednc.trackers`. A table [track.board] in the server's run file chooses it
and holds its settings; so does `trackers = ["board"]` in [server], without settings. A tracker runs in its own
thread. If it raises an exception, that is logged, the tracker is not called again, and the run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run starts, or continues after a restart.

    Attributes:
        run_id: name of the run's folder.
        folder: the run's folder; None for a run that writes no files.
        config: every setting that affects the result, as plain values; nothing from [server].
        digest: sha256 (hex) of `config`.
        options: the tracker's settings, an instance of its `Options`; None if it has none.
        primary: name of the metric that the run is judged by; empty if not known.
    """

    run_id: str
    folder: Path | None
    config: dict[str, Any]
    digest: str
    options: BaseModel | None = None
    primary: str = ""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round has ended.

    Attributes:
        metrics: on the server's test data if there is any, else on the clients' held-out data; {} if the round
            was not evaluated.
        loss: mean training loss; None if no client reported one.
        missing: names of the clients that did not answer.
        failures: reason by client.
        bytes_up, bytes_down: traffic of this round.
        spread: `min`, `q1`, `median`, `q3` and `max` of the clients' primary metrics, and how many `clients`; {}
            if they were not evaluated.
        worst: metrics of the worst client; {} if the clients were not evaluated.
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
    spread: dict[str, float] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class End:
    """The run has ended. `problem` says why it ended too early; empty if it did not."""

    problem: str = ""


class Tracker:
    """Gets told about a run. Created without arguments.

    Attributes:
        Options: the keys of its table [track.NAME], which `Start.options` then holds; None: it has no keys.
        finish_s: how long the end of a run waits for it, if a few seconds are not enough.
    """

    Options: ClassVar[type[BaseModel] | None] = None
    finish_s: ClassVar[float] = 0.0

    def on_start(self, start: Start) -> None:
        """Called before round 1, or before the first round after a restart."""

    def on_round(self, record: Round) -> None:
        """Called after each round."""

    def on_end(self, end: End) -> None:
        """Called once, however the run ended. The server waits a few seconds for it to return."""
