"""What a run achieved, round by round, and the summary at its end. Pure data; written by the strategy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class RoundRecord:
    """One round. Accuracies are shares; None where nothing was evaluated."""

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
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def accuracy(self) -> float | None:
        """On the server's test data where there is some, else pooled over the clients."""
        return self.test.get("accuracy", self.pooled.get("accuracy"))


@dataclass(kw_only=True)
class History:
    """All rounds of a run."""

    rounds: list[RoundRecord] = field(default_factory=list)

    @property
    def accuracies(self) -> list[tuple[int, float]]:
        """(round, accuracy) where evaluated."""
        return [(r.round, r.accuracy) for r in self.rounds if r.accuracy is not None]

    def rounds_to(self, target: float) -> int | None:
        """The first round that reaches `target`."""
        return next((number for number, accuracy in self.accuracies if accuracy >= target), None)

    def summary(self) -> dict[str, Any]:
        """Final, best and mean-of-last-five accuracy, with the last drift and collapse metrics."""
        values = [accuracy for _, accuracy in self.accuracies]
        last = next((r for r in reversed(self.rounds) if r.test or r.pooled), None)
        last5 = values[-5:]
        return {
            "rounds": len(self.rounds),
            "accuracy": values[-1] if values else None,
            "best": max(values, default=None),
            "last5": sum(last5) / len(last5) if last5 else None,
            "drift": next((r.drift for r in reversed(self.rounds) if r.drift is not None), None),
            "nc1": last.test.get("nc1") if last else None,
            "pooled_accuracy": last.pooled.get("accuracy") if last else None,
            "worst_client": last.worst_client if last else {},
        }

    def to_json(self) -> list[dict[str, Any]]:
        """All rounds as plain values."""
        return [asdict(record) for record in self.rounds]

    @classmethod
    def from_json(cls, rounds: list[dict[str, Any]]) -> History:
        """The history that `to_json` gave."""
        return cls(rounds=[RoundRecord(**record) for record in rounds])
