"""The results of a run, round by round, and the summary at its end. Plain data; filled by the strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fednc.common.tasks.metric_info import ACCURACY, MetricInfo

_EXPLODED = 10  # times the best loss
_SMALL_LOSS = 0.1  # multiples of a loss below this mean nothing


@dataclass(kw_only=True)
class RoundRecord:
    """One round. Percentages are stored as 0 to 1; None means not evaluated."""

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
    session: int | None = None  # the session that ended with this round
    memory_cosines: dict[str, float] = field(default_factory=dict)  # between each class's memory and its vertex
    bytes_up: int = 0
    bytes_down: int = 0
    changed: dict[str, list[Any]] = field(
        default_factory=dict
    )  # keys of the run file changed since the last round
    init: dict[str, Any] = field(default_factory=dict)  # first round only: the outcome of `[init]`

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on the server's test data if it has any, else pooled over the clients; {} if not evaluated."""
        return self.test or self.pooled

    def value_of(self, metric: MetricInfo) -> float | None:
        """One metric, on the server's test data if it has any, else pooled over the clients."""
        return self.test.get(metric.name, self.pooled.get(metric.name))


@dataclass(kw_only=True)
class History:
    """All rounds of a run.

    Attributes:
        primary: the metric that the run is judged by.
        shown: further test metrics that the summary has.
    """

    primary: MetricInfo = ACCURACY
    shown: tuple[str, ...] = ()
    rounds: list[RoundRecord] = field(default_factory=list)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(round, primary metric) of each evaluated round."""
        found = ((record.round, record.value_of(self.primary)) for record in self.rounds)
        return [(number, value) for number, value in found if value is not None]

    @property
    def has_exploded(self) -> bool:
        """Whether the last round's training loss is far above the best one, so training is about to diverge."""
        losses = [r.loss for r in self.rounds if r.loss is not None]
        return bool(losses) and losses[-1] > _EXPLODED * max(min(losses), _SMALL_LOSS)

    def rounds_to(self, target: float) -> int | None:
        """The first round whose primary metric reaches `target`."""
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
            **{key: last.test[key] for key in self.shown if last and key in last.test},
            **sessions,
            **({"init": self.rounds[0].init} if self.rounds and self.rounds[0].init else {}),
        }

    def to_json(self) -> list[dict[str, Any]]:
        """All rounds as plain values."""
        return [asdict(record) for record in self.rounds]

    @classmethod
    def from_json(
        cls, rounds: list[dict[str, Any]], primary: MetricInfo = ACCURACY, shown: tuple[str, ...] = ()
    ) -> History:
        """Rebuild a history from what `to_json` returned."""
        return cls(primary=primary, shown=shown, rounds=[RoundRecord(**record) for record in rounds])


def session_figures(ends: Sequence[RoundRecord], primary: MetricInfo = ACCURACY) -> dict[str, Any]:
    """Figures of a run with sessions, from the rounds that ended one; {} for a run without.

    `session_acc`: the metric after each session, over all classes so far; `mean`: their mean; `drop`: from the
    first to the last; `novel`: at the end, on all classes of later sessions; `sessions`: details of each session.
    """
    values = [value for record in ends if (value := record.value_of(primary)) is not None]
    if not ends or len(values) < len(ends):
        return {}
    measured = [record.test or record.pooled for record in ends]
    shown = (primary.name, "base", "novel", "newest", "harmonic")
    return {
        "session_acc": values,
        "mean": sum(values) / len(values),
        "drop": values[0] - values[-1],
        "novel": measured[-1].get("novel"),
        "sessions": [
            {
                "session": record.session,
                "round": record.round,
                **{k: v for k, v in found.items() if k in shown},
                "memory_cosines": record.memory_cosines,
            }
            for record, found in zip(ends, measured, strict=True)
        ],
    }
