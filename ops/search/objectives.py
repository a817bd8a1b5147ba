"""What a trial is judged by: figures of a run's history, and which direction is better.

Values are on what the clients hold out, unless they hold nothing out; then on the server's test data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fednc.common.tasks.metric_info import MetricInfo
from fednc.server.storage.history import History, RoundRecord

MAXIMIZE, MINIMIZE = "maximize", "minimize"


@dataclass(frozen=True)
class Objective:
    """One figure of a run so far.

    Attributes:
        of: the figure; None if the run has none (yet).
        metric: whether it is a value of the primary metric, whose direction then counts; else less is better.
        about: for people.
    """

    of: Callable[[History], float | None]
    metric: bool
    about: str

    def direction(self, primary: MetricInfo) -> str:
        """`maximize` or `minimize`."""
        return MAXIMIZE if self.metric and primary.higher_is_better else MINIMIZE


def judged_round(history: History, *, best: bool = False) -> RoundRecord | None:
    """The last evaluated round, or with `best` the best one, as `rounds.keep` chooses it."""
    numbers = [number for number, _ in history.judged]
    if not numbers:
        return None
    wanted = history.best_round if best else numbers[-1]
    return next(record for record in history.rounds if record.round == wanted)


def primary_of(history: History, *, best: bool = False) -> float | None:
    """The metric that the run is judged by, in its last or best evaluated round."""
    record = judged_round(history, best=best)
    return None if record is None else dict(history.judged)[record.round]


def _worst_client(history: History) -> float | None:
    record = judged_round(history)
    return None if record is None else record.worst_client.get(history.primary.name)


def _loss(history: History) -> float | None:
    return history.rounds[-1].loss if history.rounds else None


def _sum_of(name: str) -> Callable[[History], float | None]:
    return lambda history: float(sum(getattr(record, name) for record in history.rounds))


OBJECTIVES = {
    "primary": Objective(primary_of, True, "the task's primary metric over all held-out examples"),
    "worst_client": Objective(_worst_client, True, "the primary metric of the client where it is worst"),
    "loss": Objective(_loss, False, "the training loss of the last round"),
    "bytes_up": Objective(_sum_of("bytes_up"), False, "bytes that all clients sent"),
    "bytes_down": Objective(_sum_of("bytes_down"), False, "bytes that all clients received"),
    "seconds": Objective(_sum_of("seconds"), False, "duration of all rounds; not the same twice"),
}
