"""One training run in this process, and the outcome of every row that shares it: they differ in the read-out.

Called by `rows.py`, in a process with one thread. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fednc.bench.compare import initialisation
from fednc.bench.compare.plan import DATA, Row
from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig
from fednc.common.device import pick_device
from fednc.common.errors import DivergedError, QuorumError
from fednc.common.learning.neural_collapse import METRICS
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted
from fednc.server.storage.history import History, RoundRecord

_DIGITS = 6  # decimals kept: rows are for people to read, not for further arithmetic


def train(rows: Sequence[Row], data: Path, device: str, on_round: Callable[[], None]) -> list[dict[str, Any]]:
    """The outcome of each of `rows`, which have the same `Row.training`: failure, summary, rounds.

    Runs the row that needs most of the class memory. Making the memory changes no model, so every row gets the
    figures that a run of its own would give, bit for bit.
    """
    lead = max(rows, key=_needs)
    run = _placed(lead.run, data)
    assert run.split is not None
    names = [f"client-{index:03d}" for index in range(run.split.parts)]
    clients = [ClientConfig(name=name, data=run.evaluate.test, device=device, val_share=0) for name in names]
    events, failed = EventLog(), ""
    with LocalGrid(run, clients) as grid:
        prepared = FederatedRun(run, events, pick_device(device))
        others = {row.digest: HistoryOfReadOut(row.run, prepared) for row in rows if row is not lead}

        def on_event(event: Event) -> None:
            if isinstance(event, RoundCompleted):
                for other in others.values():
                    other.take(prepared.history.rounds[-1])
                on_round()

        events.listen(on_event)
        try:
            prepared.execute(grid, Surroundings(name_of=grid.name_of))
        except (QuorumError, DivergedError) as e:  # the loss was no longer a number
            failed = str(e)
    histories = {lead.digest: prepared.history, **{digest: other.history for digest, other in others.items()}}
    figures = {} if failed or lead.kind == "tuning" else _alignment(prepared)
    return [{**_outcome(histories[row.digest], failed), **figures} for row in rows]


def _needs(row: Row) -> tuple[bool, bool]:
    """Ordered by how much of the memory a row reads out: its metric too, its vectors, nothing."""
    method = row.run.method
    return method.needs_moments(method.memory_model, is_first=True), method.uses_memory


class HistoryOfReadOut:
    """The history of a row with the same training but another read-out, as a run of its own would give it."""

    def __init__(self, run: RunConfig, training: FederatedRun) -> None:
        self._run, self._training = run, training
        self.history = History(primary=training.task.primary, shown=training.task.summary_metrics)

    def take(self, record: RoundRecord) -> None:
        """Evaluate the model of the round that just ended. `record` already has the geometry of its features."""
        geometry = {name: value for name, value in record.test.items() if name in METRICS}
        self.history.rounds.append(replace(record, test={**self._metrics(record), **geometry}))

    def _metrics(self, record: RoundRecord) -> dict[str, float]:
        training, method = self._training, self._run.method
        if training.evaluation is None or not record.test:
            return {}
        memory = training.state.memories.under(method.memory_source, training.frame.etf_KD, self._run.seed)
        guide = guide_at(training.task, training.frame.etf_KD, memory, record.round, method=method)
        metrics = training.evaluation.metrics(training.state.model, guide)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _alignment(training: FederatedRun) -> dict[str, list[str]]:
    """Final cosine of each class mean on the test data with each class vector: one line per class."""
    if training.evaluation is None or not training.task.class_names:
        return {}
    state = training.state
    guide = guide_at(training.task, training.frame.etf_KD, state.memory, state.completed)
    cosine_KK = training.evaluation.alignment(state.model, guide)
    return {"alignment": [" ".join(f"{value:.3f}" for value in row) for row in cosine_KK.tolist()]}


def _placed(run: RunConfig, data: Path) -> RunConfig:
    test = run.evaluate.test.replace(DATA, discovery.get(run).packed_spec(data))
    return run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": test})})


def _outcome(history: History, failed: str) -> dict[str, Any]:
    told = {**history.summary(), **initialisation.figures(history)}
    if failed:  # which metric it failed by decides how bad that is
        told = {"metric": told["metric"]}
    summary = {k: _rounded(v) for k, v in told.items() if _says_something(v)}
    return {"failed": failed, "summary": summary, "rounds": [_brief(record) for record in history.rounds]}


def _says_something(value: Any) -> bool:
    return value is not None and value != {} and value != []


def _brief(record: RoundRecord) -> dict[str, Any]:
    test = {key: value for key, value in record.test.items() if "/" not in key}  # `accuracy/cat`: of one class
    train = {"round": record.round, "train_loss": record.loss, "drift": record.drift}
    return {key: _rounded(value) for key, value in {**train, **test}.items() if key != "examples"}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
