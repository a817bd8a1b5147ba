"""The results of a run, round by round, and the summary at its end. Plain data; filled by the strategy."""

from __future__ import annotations

import math
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
    spread: dict[str, float] = field(default_factory=dict)  # of the clients' primary metrics; see `spread_of`
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

    @property
    def judged(self) -> list[tuple[int, float]]:
        """(round, primary metric) of each evaluated round, as `rounds.stop_after` and `rounds.keep` see it.

        On what the clients hold out, unless they hold nothing out; then on the server's test data. Follows from
        the rounds alone, so a restarted server decides the same.
        """
        by_clients = [(r.round, r.pooled.get(self.primary.name)) for r in self.rounds]
        found = [(number, value) for number, value in by_clients if value is not None]
        return found or self.curve

    @property
    def is_judged_by_test(self) -> bool:
        """Whether `judged` has the server's test data."""
        return bool(self.judged) and not any(self.primary.name in r.pooled for r in self.rounds)

    @property
    def best_round(self) -> int | None:
        """The first round with the best value of `judged`."""
        best = self.primary.best([value for _, value in self.judged])
        return next((number for number, value in self.judged if value == best), None)

    def has_stalled(self, patience: int) -> bool:
        """Whether the last `patience` evaluations or more have not improved on the best one before them."""
        numbers = [number for number, _ in self.judged]
        best = self.best_round
        return patience > 0 and best is not None and len(numbers) - 1 - numbers.index(best) >= patience

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
            "spread": last.spread if last else {},
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


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """`min`, `q1`, `median`, `q3`, `max` and number (`clients`) of the finite values; {} if there are none."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return {}
    names = ("min", "q1", "median", "q3", "max")
    return {"clients": len(known), **{name: _quantile(known, k / 4) for k, name in enumerate(names)}}


def _quantile(ascending: Sequence[float], share: float) -> float:
    """With linear interpolation between neighbours."""
    place = share * (len(ascending) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


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
