"""One training run in this process, and the outcome of every row that shares it: they differ in the read-out.

Called by `rows.py`, in a process with one thread. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from fednc.bench.batched_grid import BatchedGrid
from fednc.bench.compare import initialisation
from fednc.bench.compare.class_sessions import SessionCosts
from fednc.bench.compare.own_tests import OfClients, OwnTests, Trained, client_figures, together
from fednc.bench.compare.plan import ALONE, DATA, POOLED, Row, client_of, part_of
from fednc.bench.compare.prepared_data import Prepared, pool
from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig
from fednc.common.device import pick_device
from fednc.common.errors import DivergedError, QuorumError
from fednc.common.learning.neural_collapse import METRICS
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted
from fednc.server.storage.history import History, RoundRecord

_DIGITS = 6  # decimals kept: rows are for people to read, not for further arithmetic


def train(
    rows: Sequence[Row],
    data: Prepared,
    device: str,
    on_round: Callable[[], None],
    grid: type[LocalGrid] = LocalGrid,
) -> list[dict[str, Any]]:
    """The outcome of each of `rows`, which have the same `Row.training`: failure, summary, rounds.

    Runs the row that needs most of the class memory. Making the memory changes no model, so every row gets the
    figures that a run of its own would give, bit for bit.
    """
    if not data.repeats:
        return _train(rows, data, device, on_round, grid)
    last = len(data.repeats) - 1
    told = [on_round if i == last else _nothing for i in range(len(data.repeats))]
    found = [_train(rows, one, device, tell, grid) for one, tell in zip(data.repeats, told, strict=True)]
    return [averaged(outcomes) for outcomes in zip(*found, strict=True)]


def _train(
    rows: Sequence[Row], data: Prepared, device: str, on_round: Callable[[], None], grid: type[LocalGrid]
) -> list[dict[str, Any]]:
    lead = max(rows, key=_needs)
    if lead.clients != ALONE:
        clients = _clients(lead, data)
        test = clients.get(POOLED, data.path)
        return [_outcome(one) for one in _trained(rows, lead, clients, test, data.clients, device, on_round, grid)]
    last = list(data.clients)[-1]
    own = [
        _trained(rows, lead, {name: path}, path, {name: path}, device, on_round if name == last else _nothing)
        for name, path in data.clients.items()
    ]
    return [_outcome(together(models)) for models in zip(*own, strict=True)]


def _nothing() -> None:
    """Counts no round: several trainings are one row."""


def _clients(row: Row, data: Prepared) -> Mapping[str, Path]:
    """Name and data of each client of a row's run."""
    if row.clients == POOLED:
        return {POOLED: pool(row.run, data.path) if row.run.split else data.path}
    if data.clients:
        return {row.clients: data.clients[row.clients]} if row.clients else data.clients
    assert row.run.split is not None
    every = {client_of(part): data.path for part in range(row.run.split.parts)}
    return {row.clients: every[row.clients]} if row.clients else every


def _trained(
    rows: Sequence[Row],
    lead: Row,
    clients: Mapping[str, Path],
    test: Path,
    own_tests: Mapping[str, Path],
    device: str,
    on_round: Callable[[], None],
    kind: type[LocalGrid] = LocalGrid,
) -> list[Trained]:
    """What each of the rows gives. `own_tests`: test data of each natural client."""
    run, places = _placed(lead, test), discovery.get(lead.run).packed_spec
    members = [
        ClientConfig(name=name, data=places(path), device=device, val_share=0) for name, path in clients.items()
    ]
    events, failed = EventLog(), ""
    with kind(run, members, first_part=part_of(lead.clients) or 0) as grid:
        prepared = FederatedRun(run, events, pick_device(device))
        costs = SessionCosts(grid.traffic)
        tests = {name: places(path) for name, path in own_tests.items()}
        found = {row.digest: HistoryOfReadOut(row.run, prepared, tests, device) for row in rows}

        def on_event(event: Event) -> None:
            if isinstance(event, RoundCompleted):
                for row in rows:
                    found[row.digest].take(prepared.history.rounds[-1], is_own=row is lead)
                on_round()
            costs.take(event)

        events.listen(on_event)
        try:
            prepared.execute(grid, Surroundings(name_of=grid.name_of))
        except (QuorumError, DivergedError) as e:  # the loss was no longer a number
            failed = str(e)
    found[lead.digest].history = prepared.history
    tells = not failed and lead.kind != "tuning"
    figures: dict[str, Any] = {**_alignment(prepared), **costs.figures()} if tells else {}
    if isinstance(grid, BatchedGrid):
        figures["trainer"] = f"one by one: {grid.alone}" if grid.alone else "batched"
    return [
        Trained(prepared.task, found[row.digest].history, found[row.digest].own, failed, figures) for row in rows
    ]


def _needs(row: Row) -> tuple[bool, bool]:
    """Ordered by how much of the memory a row reads out: its metric too, its vectors, nothing."""
    method = row.run.method
    return method.needs_moments(method.memory_model, is_first=True), method.uses_memory


class HistoryOfReadOut:
    """The history of a row with the same training but another read-out, as a run of its own would give it.

    Attributes:
        history: metrics on all test data.
        own: for each evaluated round, the statistics on each natural client's own test data.
    """

    def __init__(
        self,
        run: RunConfig,
        training: FederatedRun,
        tests: Mapping[str, str] = MappingProxyType({}),
        device: str = "cpu",
    ) -> None:
        self._run, self._training = run, training
        self._tests = OwnTests(training.task, training.model, tests, run.evaluate.batch, pick_device(device))
        self.history = History(primary=training.task.primary, shown=training.task.summary_metrics)
        self.own: list[OfClients] = []

    def take(self, record: RoundRecord, *, is_own: bool = False) -> None:
        """Evaluate the model of the round that just ended. `record` already has the geometry of its features.

        `is_own`: the training run has this read-out itself, so `record` has its metrics.
        """
        if not record.test:
            self.history.rounds.append(replace(record, test={}))
            return
        if self._tests.names:
            self.own.append(self._tests.statistics(self._training.state.model, self._guide(record)))
        if not is_own:
            geometry = {name: value for name, value in record.test.items() if name in METRICS}
            self.history.rounds.append(replace(record, test={**self._metrics(record), **geometry}))

    def _metrics(self, record: RoundRecord) -> dict[str, float]:
        if self._training.evaluation is None:
            return {}
        metrics = self._training.evaluation.metrics(self._training.state.model, self._guide(record))
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _guide(self, record: RoundRecord) -> Guide:
        training, method = self._training, self._run.method
        memory = training.state.memories.under(method.memory_source, training.frame.etf_KD, self._run.seed)
        return guide_at(training.task, training.frame.etf_KD, memory, record.round, method=method)


def _alignment(training: FederatedRun) -> dict[str, list[str]]:
    """Final cosine of each class mean on the test data with each class vector: one line per class."""
    if training.evaluation is None or not training.task.class_names:
        return {}
    state = training.state
    guide = guide_at(training.task, training.frame.etf_KD, state.memory, state.completed)
    cosine_KK = training.evaluation.alignment(state.model, guide)
    return {"alignment": [" ".join(f"{value:.3f}" for value in row) for row in cosine_KK.tolist()]}


def _placed(row: Row, data: Path) -> RunConfig:
    """The run with its test data. It fits no temperature: clients hold nothing out, and no row tells it."""
    run = row.run
    test = run.evaluate.test.replace(DATA, discovery.get(run).packed_spec(data))
    evaluate = run.evaluate.model_copy(update={"test": test, "temperature": False})
    split = None if row.clients == POOLED else run.split  # what is pooled has been split and shifted
    return run.model_copy(update={"evaluate": evaluate, "split": split})


def _outcome(trained: Trained) -> dict[str, Any]:
    history, failed = trained.history, trained.failed
    of_clients = {} if failed or not trained.own else client_figures(trained.task, trained.own)
    told = {**history.summary(), **initialisation.figures(history), **of_clients.pop("summary", {})}
    if failed:  # which metric it failed by decides how bad that is
        told = {"metric": told["metric"]}
    summary = {k: _rounded(v) for k, v in told.items() if _says_something(v)}
    rounds = [_brief(record) for record in history.rounds]
    return {"failed": failed, "summary": summary, "rounds": rounds, **_rounded(of_clients), **trained.figures}


def averaged(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One outcome of several validation splits: the means of what the choice of a rate uses."""
    if failed := [one for one in outcomes if one["failed"]]:
        return failed[0]
    keys = ("best", "last5", outcomes[0]["summary"]["metric"]["name"])
    means = {key: _rounded(fmean(one["summary"][key] for one in outcomes)) for key in keys}
    return {**outcomes[0], "summary": {**outcomes[0]["summary"], **means}, "validation_splits": len(outcomes)}


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
