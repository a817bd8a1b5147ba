"""Callbacks for `fednc.run`, called between rounds: stop early, keep the best model, show progress.

Your own callback derives from `Callback` and overrides what it needs. An exception from it ends the run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.in_process import Result, Running
    from fednc.server.storage.events import Event
    from fednc.server.storage.history import RoundRecord


class Callback:
    """Called at the start of a run, after each round and at the end."""

    def on_start(self, run: Running) -> None:
        """Called before round 1."""

    def on_event(self, run: Running, event: Event) -> None:
        """Called with everything that the run records in its `events.jsonl`."""

    def on_round(self, run: Running, record: RoundRecord) -> None:
        """Called after each round; `run.stop(reason)` makes it the last."""

    def on_end(self, run: Running, result: Result) -> None:
        """Called after the run, however it ended."""


class _Watch:
    """The best value of one metric of a run so far."""

    def __init__(self, run: Running, metric: str, higher_is_better: bool | None) -> None:
        self.metric = metric or run.primary
        rises = run.rises(self.metric) if higher_is_better is None else higher_is_better
        self._sign = 1 if rises else -1
        self.best = -math.inf  # of sign * value

    def improves(self, record: RoundRecord, by: float = 0.0) -> bool | None:
        """Whether the round's value is the best so far; None if the round was not evaluated."""
        value = value_of(record, self.metric)
        if value is None:
            return None
        better = self._sign * value > self.best + by
        if better:
            self.best = self._sign * value
        return better


class EarlyStop(Callback):
    """Ends a run once a metric has not improved for `patience` evaluated rounds in a row."""

    def __init__(
        self,
        metric: str = "",
        patience: int = 5,
        *,
        min_delta: float = 0.0,
        higher_is_better: bool | None = None,
    ) -> None:
        """Watch one metric.

        Args:
            metric: a metric of the task, on the server's test data if there is any, else on the clients' held-out
                data; `train_loss` is the mean training loss; empty: the task's primary metric.
            patience: number of evaluated rounds without an improvement.
            min_delta: smallest change that counts as an improvement.
            higher_is_better: None: as the task defines it for this metric.
        """
        if patience < 1:
            raise ConfigError(f"patience: {patience} rounds; give at least 1")
        self._metric, self._patience, self._min_delta = metric, patience, min_delta
        self._higher_is_better = higher_is_better

    def on_start(self, run: Running) -> None:
        """See Callback. Resets the state, since one callback may serve several runs in turn."""
        self._watch, self._waited = _Watch(run, self._metric, self._higher_is_better), 0

    def on_round(self, run: Running, record: RoundRecord) -> None:
        """See Callback."""
        improves = self._watch.improves(record, self._min_delta)
        if improves is None:
            return
        self._waited = 0 if improves else self._waited + 1
        if self._waited >= self._patience:
            run.stop(f"{self._watch.metric} has not improved for {self._waited} rounds")


class BestCheckpoint(Callback):
    """Keeps the model of the best round, in the form that `fednc.load` reads."""

    def __init__(self, folder: str | Path, metric: str = "", *, higher_is_better: bool | None = None) -> None:
        """Write into `folder`; for `metric` and `higher_is_better` see EarlyStop."""
        self.folder = Path(folder)
        self._metric, self._higher_is_better = metric, higher_is_better
        self.round = 0  # the round of the model in the folder; 0: none yet

    def on_start(self, run: Running) -> None:
        """See Callback."""
        self._watch, self.round = _Watch(run, self._metric, self._higher_is_better), 0

    def on_round(self, run: Running, record: RoundRecord) -> None:
        """See Callback."""
        if self._watch.improves(record):
            run.export(self.folder)
            self.round = record.round


class Progress(Callback):
    """Prints a line per round, on a terminal's stderr or in a notebook."""

    def on_start(self, run: Running) -> None:
        """See Callback."""
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, emoji=False, markup=False)
        self._console.print(f"{run.config.name}: {run.config.all_rounds} rounds, {len(run.clients)} clients")

    def on_round(self, run: Running, record: RoundRecord) -> None:
        """See Callback."""
        figures = {"loss": record.loss, run.primary: record.metrics.get(run.primary)}
        told = "".join(f", {name} {value:.4g}" for name, value in figures.items() if value is not None)
        failed = f", {len(record.failures)} failed" if record.failures else ""
        self._console.print(
            f"round {record.round}/{run.config.all_rounds}{told}{failed} ({record.seconds:.1f} s)", soft_wrap=True
        )

    def on_end(self, run: Running, result: Result) -> None:
        """See Callback."""
        del run
        if result.ended != "finished":
            self._console.print(f"{result.ended}; the model is that of round {result.rounds}", soft_wrap=True)


def value_of(record: RoundRecord, metric: str) -> float | None:
    """A round's value of a metric; None if the round was not evaluated.

    Raises:
        ConfigError: the round was evaluated, but the task has no such metric.
    """
    if metric == "train_loss":
        return record.loss
    metrics = record.metrics
    if metrics and metric not in metrics:
        raise ConfigError(
            f"metric: {metric!r} is not measured in this run; available: {', '.join(sorted(metrics))}, train_loss"
        )
    return metrics.get(metric)
