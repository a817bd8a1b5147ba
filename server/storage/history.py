"""What a run achieved, round by round, and the summary at its end. Pure data; written by the strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fednc.common.tasks.metric_info import ACCURACY, MetricInfo

_EXPLODED = 10  # times the best loss
_SMALL_LOSS = 0.1  # near zero a multiple says nothing


@dataclass(kw_only=True)
class RoundRecord:
    """One round. Shares are 0 ... 1; None where nothing was evaluated."""

    round: int
    seconds: float = 0.0
    replies: int = 0
    missing: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    examples: int = 0
    loss: float | None = None
    drift: float | None = None
    pooled: dict[str, float] = field(default_factory=dict)  # metrics over all clients' held-out examples
    worst_client: dict[str, Any] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)  # metrics on the server's own test data
    session: int | None = None  # that ended with this round
    memory_cosines: dict[str, float] = field(default_factory=dict)  # of each class's memory to its vertex, by name
    bytes_up: int = 0
    bytes_down: int = 0
    changed: dict[str, list[Any]] = field(default_factory=dict)  # keys of the run file since the round before
    init: dict[str, Any] = field(default_factory=dict)  # of the first round: what became of the drawn weights

    @property
    def metrics(self) -> dict[str, float]:
        """On the server's test data where there is some, else pooled over the clients; {} if not evaluated."""
        return self.test or self.pooled

    def value_of(self, metric: MetricInfo) -> float | None:
        """On the server's test data where there is some, else pooled over the clients."""
        return self.test.get(metric.name, self.pooled.get(metric.name))


@dataclass(kw_only=True)
class History:
    """All rounds of a run, which is judged by its task's primary metric."""

    primary: MetricInfo = ACCURACY
    rounds: list[RoundRecord] = field(default_factory=list)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(round, primary metric) where evaluated."""
        found = ((record.round, record.value_of(self.primary)) for record in self.rounds)
        return [(number, value) for number, value in found if value is not None]

    @property
    def has_exploded(self) -> bool:
        """Whether the training loss of the last round is far above the best one, on its way to NaN."""
        losses = [r.loss for r in self.rounds if r.loss is not None]
        return bool(losses) and losses[-1] > _EXPLODED * max(min(losses), _SMALL_LOSS)

    def rounds_to(self, target: float) -> int | None:
        """The first round that reaches `target`."""
        return next((number for number, value in self.curve if self.primary.reaches(value, target)), None)

    def summary(self) -> dict[str, Any]:
        """Final, best and mean-of-last-five value of the primary metric; the last drift and collapse metrics."""
        name, values = self.primary.name, [value for _, value in self.curve]
        last = next((r for r in reversed(self.rounds) if r.test or r.pooled), None)
        last5 = values[-5:]
        sessions = session_figures([r for r in self.rounds if r.session is not None], self.primary)
        return {
            "rounds": len(self.rounds),
            "metric": self.primary.to_json(),
            name: values[-1] if values else None,
            "best": self.primary.best(values),
            "last5": sum(last5) / len(last5) if last5 else None,
            "drift": next((r.drift for r in reversed(self.rounds) if r.drift is not None), None),
            "nc1": last.test.get("nc1") if last else None,
            f"pooled_{name}": last.pooled.get(name) if last else None,
            "worst_client": last.worst_client if last else {},
            **sessions,
            **({"init": self.rounds[0].init} if self.rounds and self.rounds[0].init else {}),
        }

    def to_json(self) -> list[dict[str, Any]]:
        """All rounds as plain values."""
        return [asdict(record) for record in self.rounds]

    @classmethod
    def from_json(cls, rounds: list[dict[str, Any]], primary: MetricInfo = ACCURACY) -> History:
        """The history that `to_json` gave."""
        return cls(primary=primary, rounds=[RoundRecord(**record) for record in rounds])


def session_figures(ends: Sequence[RoundRecord], primary: MetricInfo = ACCURACY) -> dict[str, Any]:
    """What the rounds that ended a session say of them; nothing without any.

    `session_acc`: after each session over all classes seen by then; `mean` of them; `drop` from the first to the
    last; `novel`: on all classes of later sessions, at the end; `sessions`: all that is known of each.
    """
    values = [value for record in ends if (value := record.value_of(primary)) is not None]
    if not ends or len(values) < len(ends):
        return {}
    measured = [record.test or record.pooled for record in ends]
    told = (primary.name, "base", "novel", "newest", "harmonic")
    return {
        "session_acc": values,
        "mean": sum(values) / len(values),
        "drop": values[0] - values[-1],
        "novel": measured[-1].get("novel"),
        "sessions": [
            {
                "session": record.session,
                "round": record.round,
                **{k: v for k, v in found.items() if k in told},
                "memory_cosines": record.memory_cosines,
            }
            for record, found in zip(ends, measured, strict=True)
        ],
    }
