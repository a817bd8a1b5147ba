"""One run as the page shows it: the server's status and the run's folder together, whichever of them there is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fednc.common.tasks.metric_info import MetricInfo
from fednc.ops.console.charts import Band, ChartLine
from fednc.ops.console.geometry import ClassPlace, Geometry
from fednc.ops.console.run_log import LoggedEvent, RoundPoint, RunLog
from fednc.ops.run_folders.folder import RunFolder, State
from fednc.protos import operator_pb2 as pb

# What servers say of runs that ended as they should (server/listener.py).
_GOOD_ENDINGS = ("the run is over", "an operator stopped the run")
Curve = Sequence[tuple[float, float]]
PAGE = 25  # clients on one page of the table
_MOST_SQUARES = 1200
_MOST_CLASSES = 24
_GOOD, _BUSY, _WARN, _BAD, _QUIET = "good", "busy", "warn", "bad", "quiet"
# States of nodes (server/link/nodes.py) and of run folders: how they look, and how urgent they are.
_LOOKS = {
    "preparing": _QUIET,
    "ready": _GOOD,
    "working": _BUSY,
    "rehearsing": _QUIET,
    "paused": _QUIET,
    "leaving": _QUIET,
    "unfit": _WARN,
    "lost": _BAD,
    "dropped": _BAD,
    "quarantined": _BAD,
}
RUN_LOOKS = {
    State.RUNNING: _BUSY,
    State.FINISHED: _GOOD,
    State.STOPPED: _QUIET,
    State.FAILED: _BAD,
    State.RESUMABLE: _WARN,
    State.DAMAGED: _BAD,
}
_URGENCY = {_BAD: 0, _WARN: 1, _BUSY: 2, _QUIET: 3, _GOOD: 3}
SORTS = ("attention", "name", "value", "speed", "examples", "seen")


@dataclass(frozen=True)
class ClientRow:
    """One client of the table."""

    name: str
    state: str
    look: str
    problem: str = ""
    seen_s: float = math.nan
    work: str = ""
    step: int = 0
    steps: int = 0
    speed: float = 0.0  # examples/s
    examples: int = 0
    held_out: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    device: str = ""
    value: float = math.nan  # of the primary metric
    curve: Curve = ()

    @property
    def is_busy(self) -> bool:
        """Whether the round waits for it."""
        return self.look == _BUSY


@dataclass(frozen=True)
class ClientList:
    """The clients that one page of the table shows, and what there is in total."""

    rows: Sequence[ClientRow]
    found: int
    total: int
    page: int
    pages: int
    sort: str
    query: str


@dataclass
class ShownRun:
    """Everything that the templates need of one run.

    Attributes:
        name: of the run, for people.
        ref: its name on the shelf; empty if its folder is not there.
        is_live: a server was asked for it.
        problem: why the server cannot be asked, or why the run ended.
    """

    name: str
    log: RunLog
    ref: str = ""
    folder: Path | None = None
    status: pb.RunStatus | None = None
    geometry: Geometry | None = None
    stored: RunFolder | None = None
    is_live: bool = False
    problem: str = ""
    silent_s: float = 0.0
    speeds: Mapping[str, float] = field(default_factory=dict)
    _rows: list[ClientRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rows = self._live_rows() if self.status else self._stored_rows()

    # ---- the head ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> MetricInfo:
        """What the run is judged by."""
        return self.log.primary

    @property
    def points(self) -> list[RoundPoint]:
        """All known rounds."""
        return self.log.points

    @property
    def state(self) -> tuple[str, str]:
        """How the run stands, in a few words, and how that looks."""
        status = self.status
        if status is None:
            return self._stored_state()
        if status.over:
            is_good = status.over in _GOOD_ENDINGS
            return ("over" if is_good else "failed"), (_QUIET if is_good else _BAD)
        if self.problem:
            return "server does not answer", _BAD
        if status.HasField("waiting_session"):
            return f"session {status.waiting_session} waits for an operator", _WARN
        if status.paused:
            return (
                ("paused", _WARN) if status.phase == pb.RunStatus.WAITING else ("pauses after this round", _WARN)
            )
        if status.stopping:
            return "stops after this round", _WARN
        if status.phase == pb.RunStatus.WAITING:
            return "waiting for clients", _WARN
        return ("starting", _QUIET) if status.phase == pb.RunStatus.STARTING else ("running", _BUSY)

    def _stored_state(self) -> tuple[str, str]:
        if self.stored is None:
            return ("server does not answer", _BAD) if self.is_live else ("unknown", _QUIET)
        return str(self.stored.state), RUN_LOOKS.get(self.stored.state, _QUIET)

    @property
    def completed(self) -> int:
        """Rounds completed."""
        of_status = self.status.completed if self.status else 0
        return max(of_status, self.points[-1].round if self.points else 0)

    @property
    def planned(self) -> int:
        """Rounds that the run file asks for; 0: unknown."""
        if self.status:
            return self.status.rounds
        return (self.stored.planned or 0) if self.stored else 0

    @property
    def edge(self) -> int:
        """The round at the right edge of the curves: the last planned one, once a third of them is done."""
        return self.planned if 3 * self.completed >= self.planned else self.completed

    @property
    def can_be_told(self) -> bool:
        """Whether commands make sense."""
        return self.is_live and self.status is not None and not self.status.over and not self.problem

    @property
    def left_s(self) -> float:
        """Seconds until the last round, by the median of the last rounds; NaN: unknown."""
        seconds = sorted(p.seconds for p in self.points[-9:] if math.isfinite(p.seconds))
        left = self.planned - self.completed
        return seconds[len(seconds) // 2] * left if seconds and left > 0 else math.nan

    # ---- curves ------------------------------------------------------------------------------------------------

    def line(self, name: str, key: str, css: str = "a") -> ChartLine:
        """One number of each round as a line."""
        return ChartLine(
            name, [(p.round, getattr(p, key)) for p in self.points if math.isfinite(getattr(p, key))], css
        )

    def metric_lines(self) -> list[ChartLine]:
        """The primary metric: of the test data, over what clients hold out, and of the worst client."""
        lines = [self.line(self.metric.name, "primary")]
        held_out = self.line("held out by clients", "held_out", "b")
        if held_out.points and held_out.points != lines[0].points:
            lines.append(held_out)
        worst = self.line("worst client", "worst", "c")
        return [line for line in [*lines, worst] if line.points]

    def spread_band(self) -> Band:
        """The middle half of the clients."""
        halves = [(p.round, p.spread.q1, p.spread.q3) for p in self.points if p.spread]
        return Band("middle half of the clients", halves)

    def latest(self, key: str) -> float:
        """The last known value of a number of the rounds; NaN if there is none."""
        return next((v for p in reversed(self.points) if math.isfinite(v := getattr(p, key))), math.nan)

    def change(self, key: str) -> float:
        """By how much a number changed in the last round in which it was known."""
        values = [v for p in self.points[-50:] if math.isfinite(v := getattr(p, key))]
        return values[-1] - values[-2] if len(values) > 1 else math.nan

    @property
    def bytes_up(self) -> int:
        """Of the whole run."""
        return self.status.bytes_up if self.status else sum(p.bytes_up for p in self.points)

    @property
    def bytes_down(self) -> int:
        """Of the whole run."""
        return self.status.bytes_down if self.status else sum(p.bytes_down for p in self.points)

    # ---- clients -----------------------------------------------------------------------------------------------

    @property
    def squares(self) -> Sequence[ClientRow]:
        """All clients by name; none if there are too many to draw."""
        return self._rows if len(self._rows) <= _MOST_SQUARES else ()

    @property
    def clients(self) -> int:
        """How many clients are known."""
        return len(self._rows)

    def counts(self) -> list[tuple[str, str, int]]:
        """(state, look, number) of the clients."""
        found = Counter((row.state, row.look) for row in self._rows)
        return [(state, look, number) for (state, look), number in found.most_common()]

    @property
    def here(self) -> int:
        """Clients that could be asked now."""
        return sum(row.look in (_GOOD, _BUSY) for row in self._rows)

    def client(self, name: str) -> ClientRow | None:
        """One client."""
        return next((row for row in self._rows if row.name == name), None)

    def values(self) -> list[float]:
        """The primary metric of each client that has one."""
        return [row.value for row in self._rows if math.isfinite(row.value)]

    def client_list(self, sort: str = "attention", query: str = "", page: int = 1) -> ClientList:
        """One page of the clients."""
        wanted = query.strip().lower()[:80]
        rows = [
            row for row in self._rows if not wanted or wanted in f"{row.name} {row.state} {row.device}".lower()
        ]
        sort = sort if sort in SORTS else SORTS[0]
        rows.sort(key=self._order(sort))
        pages = max(1, math.ceil(len(rows) / PAGE))
        page = min(max(1, page), pages)
        shown = rows[(page - 1) * PAGE : page * PAGE]
        return ClientList(shown, len(rows), len(self._rows), page, pages, sort, wanted)

    def _order(self, sort: str) -> Callable[[ClientRow], tuple[Any, ...]]:
        worst_first = 1 if self.metric.higher_is_better else -1

        def value(row: ClientRow) -> float:
            return worst_first * row.value if math.isfinite(row.value) else math.inf

        orders: dict[str, Callable[[ClientRow], tuple[Any, ...]]] = {
            "attention": lambda row: (_URGENCY[row.look], value(row)),
            "name": lambda _: (),
            "value": lambda row: (value(row),),
            "speed": lambda row: (-row.speed,),
            "examples": lambda row: (-row.examples,),
            "seen": lambda row: (-row.seen_s if math.isfinite(row.seen_s) else 0.0,),
        }
        return lambda row: (*orders[sort](row), row.name)

    def _live_rows(self) -> list[ClientRow]:
        assert self.status is not None
        busy = set(self.status.missing)
        out = {
            **dict.fromkeys(self.status.dropped, "dropped"),
            **dict.fromkeys(self.status.quarantined, "quarantined"),
        }
        rows = [self._live_row(node, node.name in busy, out.pop(node.name, "")) for node in self.status.nodes]
        rows += [ClientRow(name, state, _BAD) for name, state in out.items()]
        return sorted(rows, key=lambda row: row.name)

    def _live_row(self, node: pb.NodeStatus, is_busy: bool, banned: str) -> ClientRow:
        state = banned or ("working" if is_busy else node.state)
        curve: Curve = self.log.clients.get(node.name, ())
        value = node.primary.value if node.HasField("primary") else curve[-1][1] if curve else math.nan
        return ClientRow(
            name=node.name,
            state=state,
            look=_LOOKS.get(state, _QUIET),
            problem=node.problem,
            seen_s=node.last_seen_s,
            work=node.work,
            step=node.step,
            steps=node.steps,
            speed=node.examples_per_s or self.speeds.get(node.name, 0.0),
            examples=node.examples,
            held_out=node.held_out,
            bytes_up=node.bytes_up,
            bytes_down=node.bytes_down,
            device=node.device,
            value=value,
            curve=curve,
        )

    def _stored_rows(self) -> list[ClientRow]:
        examples = {name: int(metrics.get("examples", 0)) for name, metrics in self.log.client_metrics.items()}
        names = sorted({*self.log.clients, *examples})
        curves: dict[str, Curve] = {name: self.log.clients.get(name, ()) for name in names}
        return [
            ClientRow(
                name,
                "took part",
                _QUIET,
                held_out=examples.get(name, 0),
                value=curves[name][-1][1] if curves[name] else math.nan,
                curve=curves[name],
            )
            for name in names
        ]

    # ---- classes and events -------------------------------------------------------------------------------------

    def class_values(self) -> list[tuple[str, float]]:
        """(class, primary metric on it), the worst first."""
        start = f"{self.metric.name}/"
        found = [(key.removeprefix(start), v) for key, v in self.log.last.items() if key.startswith(start)]
        return sorted(found, key=lambda one: one[1], reverse=not self.metric.higher_is_better)[:_MOST_CLASSES]

    def places(self) -> tuple[list[ClassPlace], int]:
        """The classes whose means are shown, and how many there are: all, or those with the smallest margin."""
        now = self.geometry.now if self.geometry else None
        seen = [place for place in now.places if math.isfinite(place.own)] if now else []
        if len(seen) <= _MOST_CLASSES:
            return seen, len(seen)
        return sorted(seen, key=lambda place: place.margin)[:_MOST_CLASSES], len(seen)

    def events(self, *, only_warnings: bool = False, node: str = "", most: int = 60) -> list[LoggedEvent]:
        """The last events, the newest first."""
        found = [
            one
            for one in reversed(self.log.events)
            if (not only_warnings or one.level >= 30) and (not node or one.node == node)
        ]
        return found[:most]
