"""What a run has recorded so far: a few numbers per round, the last events, the metrics of each client.

Reads `events.jsonl` and `clients.jsonl` of a run folder, each time only what is new, or takes the status that a
server sends. What it keeps per round is small and of fixed size, so a run of ten thousand rounds stays cheap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fednc.common.peer_text import one_line
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.ops.console.tail import JsonTail
from fednc.protos import operator_pb2 as pb
from fednc.server.storage.client_metrics import FILE as CLIENTS_FILE
from fednc.server.storage.event_log import older_first
from fednc.server.storage.events import KINDS

_KEPT_EVENTS = 400
_KEPT_VALUES = 200  # of each client
_MOST_CLIENTS = 20_000
_MOST_OLD_FILES = 9
_QUARTILES = {"q1", "median", "q3"}
_ENDINGS = {"done": "finished", "stop": "stopped"}


class Quartiles(NamedTuple):
    """Of the clients' own values of the primary metric."""

    q1: float
    median: float
    q3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPoint:
    """One round. NaN: not known."""

    round: int
    seconds: float = math.nan
    fold_s: float = math.nan
    loss: float = math.nan
    drift: float = math.nan
    primary: float = math.nan
    held_out: float = math.nan  # the primary metric over what the clients hold out
    worst: float = math.nan
    spread: Quartiles | None = None  # over the clients
    nc1: float = math.nan
    nc3_cos: float = math.nan
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event, for people."""

    at: float
    kind: str
    level: int
    text: str
    node: str


@dataclass
class RunLog:
    """A run as far as this console knows it.

    Attributes:
        version: changes with everything that is taken in.
        last: metrics of the last evaluated round, all of them: `accuracy/CLASS` for each class.
        speeds: examples/s of each client, when it last worked.
        ended: `finished` or `stopped`, if the log says so; `resumed` runs are neither.
    """

    folder: Path | None = None
    primary: MetricInfo = ACCURACY
    method: str = ""
    rounds: dict[int, RoundPoint] = field(default_factory=dict)
    events: deque[LoggedEvent] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    last: dict[str, float] = field(default_factory=dict)
    worst_client: str = ""
    ended: str = ""
    warnings: int = 0
    version: int = 0
    clients: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    client_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sorted: tuple[int, list[RoundPoint]] = (-1, [])
        self._events = self._of_clients = None
        if self.folder is not None:
            events = self.folder / "events.jsonl"
            self._older: list[JsonTail] = [JsonTail(path) for path in older_first(events, _MOST_OLD_FILES)]
            self._events, self._of_clients = JsonTail(events), JsonTail(self.folder / CLIENTS_FILE)

    @property
    def points(self) -> list[RoundPoint]:
        """All rounds in order."""
        if self._sorted[0] != self.version:
            self._sorted = (self.version, [self.rounds[number] for number in sorted(self.rounds)])
        return self._sorted[1]

    # ---- from the run folder -----------------------------------------------------------------------------------

    def read(self) -> None:
        """Take in what the run has written since the last call."""
        if self._events is None or self._of_clients is None:
            return
        for tail in self._older:
            for line in tail.news():
                self._take(line)
            tail.close()
        self._older = []
        for line in self._events.news():
            self._take(line)
        if self._of_clients.was_replaced():  # a restarted server rewrote it
            self._of_clients.close()
            self.clients.clear()
        for line in self._of_clients.news():
            self._take_client(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        self.version += 1
        kind, text = str(line.get("kind", "")), one_line(line.get("text", ""), 400)
        known = KINDS.get(kind)
        level = known.level if known else 20
        self.warnings += level >= 30
        node = one_line(line.get("node") or "", 80)
        self.events.append(LoggedEvent(_number(line.get("at")), kind, level, text, node))
        if kind == "start":
            self._start(line)
        elif kind == "resume":
            self._go_back_to(int(_number(line.get("round"), 0)))
        elif kind in ("round", "evaluated"):
            self._add_round(line)
        elif kind in _ENDINGS and not (kind == "done" and self.ended):
            self.ended = _ENDINGS[kind]

    def _start(self, line: Mapping[str, Any]) -> None:
        self.ended, self.method = "", one_line(line.get("method", ""), 40)
        metric = line.get("metric")
        if isinstance(metric, Mapping):
            self.primary = MetricInfo(
                one_line(metric.get("name", ""), 80),
                bool(metric.get("higher_is_better", True)),
                one_line(metric.get("unit", ""), 20),
            )

    def _go_back_to(self, completed: int) -> None:
        self.rounds = {number: point for number, point in self.rounds.items() if number <= completed}

    def _add_round(self, line: Mapping[str, Any]) -> None:
        test, pooled = _numbers(line.get("test")), _numbers(line.get("pooled"))
        measured = test or pooled
        if measured:
            self.last = measured
        spread, worst = _numbers(line.get("spread")), line.get("worst_client")
        worst = worst if isinstance(worst, Mapping) else {}
        if worst.get("name"):
            self.worst_client = one_line(worst["name"], 80)
        name = self.primary.name
        point = RoundPoint(
            round=int(_number(line.get("round"), 0)),
            seconds=_number(line.get("seconds")),
            fold_s=_number(line.get("fold_s")),
            loss=_number(line.get("loss")),
            drift=_number(line.get("drift")),
            primary=test.get(name, pooled.get(name, math.nan)),
            held_out=pooled.get(name, math.nan),
            worst=_number(worst.get(name)),
            spread=Quartiles(**{key: spread[key] for key in _QUARTILES}) if spread.keys() >= _QUARTILES else None,
            nc1=measured.get("nc1", math.nan),
            nc3_cos=measured.get("nc3_cos", math.nan),
            bytes_up=int(_number(line.get("bytes_up"), 0)),
            bytes_down=int(_number(line.get("bytes_down"), 0)),
        )
        self.rounds[point.round] = point

    def _take_client(self, line: Mapping[str, Any]) -> None:
        name = one_line(line.get("client", ""), 80)
        if not name or (name not in self.clients and len(self.clients) >= _MOST_CLIENTS):
            return
        self.version += 1
        values = _numbers({key: value for key, value in line.items() if key not in ("client", "round")})
        self.client_metrics[name] = values
        if self.primary.name in values:
            kept = self.clients.setdefault(name, deque(maxlen=_KEPT_VALUES))
            kept.append((_number(line.get("round"), 0), values[self.primary.name]))

    # ---- from the server ---------------------------------------------------------------------------------------

    def hear(self, status: pb.RunStatus) -> None:
        """Take in a server's status: all there is if the run's folder is not on this machine."""
        self.speeds |= {node.name: node.examples_per_s for node in status.nodes if node.examples_per_s > 0}
        self.method = status.method
        if status.HasField("primary"):
            metric = status.primary
            self.primary = MetricInfo(metric.name, not metric.lower_is_better, metric.unit)
        if status.completed and status.completed not in self.rounds:
            self._hear_round(status)

    def _hear_round(self, status: pb.RunStatus) -> None:
        self.version += 1
        spread = status.spread if status.HasField("spread") else None
        self.rounds[status.completed] = RoundPoint(
            round=status.completed,
            seconds=status.round_s,
            fold_s=status.fold_s,
            loss=status.loss if status.HasField("loss") else math.nan,
            primary=status.primary.value if status.HasField("primary") else math.nan,
            spread=Quartiles(spread.q1, spread.median, spread.q3) if spread else None,
        )
        for node in status.nodes:
            if node.HasField("primary"):
                kept = self.clients.setdefault(node.name, deque(maxlen=_KEPT_VALUES))
                kept.append((status.completed, node.primary.value))


def _number(value: object, otherwise: float = math.nan) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else otherwise  # type: ignore[arg-type]


def _numbers(values: object) -> dict[str, float]:
    """The finite numbers of a mapping."""
    if not isinstance(values, Mapping):
        return {}
    found = {one_line(key, 120): _number(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if math.isfinite(value)}
