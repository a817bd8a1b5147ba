"""Natural clients have test data of their own: statistics of a model on each, and figures made from them.

Statistics are additive sums, so their total gives the metric on all test examples exactly, also where each client
has a model of its own. Called by `training.py`. Writes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, add_stats
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.metrics import EXAMPLES, Stats
from fednc.server.storage.history import History, RoundRecord

OfClients = dict[str, Stats]  # statistics on the test data of each client, by name
LAST = 5  # rounds over which figures are averaged, as everywhere in a comparison


@dataclass(frozen=True)
class Trained:
    """What one training gave one row."""

    task: Task
    history: History
    own: list[OfClients]  # one for each evaluated round
    failed: str
    figures: dict[str, Any]


class OwnTests:
    """The test data of each natural client, kept on one device with a model to evaluate."""

    def __init__(
        self, task: Task, model: nn.Module, specs: Mapping[str, str], batch: int, device: torch.device
    ) -> None:
        self._task, self._batch, self._device = task, batch, device
        self._data = {name: task.load_test(spec).to(device) for name, spec in specs.items()}
        self._model = copy.deepcopy(model).to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the clients."""
        return tuple(self._data)

    def statistics(self, state: Mapping[str, Tensor], guide: Guide) -> OfClients:
        """The task's statistics of a global state on each client's test data."""
        self._model.load_state_dict(state, strict=False)
        guide = guide.to(self._device)
        return {
            name: evaluate(self._task, self._model, data, guide, self._batch) for name, data in self._data.items()
        }


def together(models: Sequence[Trained]) -> Trained:
    """What the models of several clients, each on its own test data, give together."""
    first = models[0]
    failed = next((one.failed for one in models if one.failed), "")
    own = [
        {name: stats for each in round_ for name, stats in each.items()}
        for round_ in zip(*(one.own for one in models), strict=False)  # one that failed has fewer
    ]
    evaluated = iter(own)
    history = History(primary=first.history.primary)
    for record in first.history.rounds:
        history.rounds.append(_pooled(first.task, record, next(evaluated, None) if record.test else None))
    return replace(first, history=history, own=own, failed=failed, figures={})


def _pooled(task: Task, record: RoundRecord, of_clients: OfClients | None) -> RoundRecord:
    measured = {} if of_clients is None else task.measure(_sum(of_clients))
    finite = {name: value for name, value in measured.items() if math.isfinite(value)}
    return RoundRecord(round=record.round, seconds=record.seconds, test=finite)


def client_figures(task: Task, own: Sequence[OfClients]) -> dict[str, Any]:
    """`clients`: examples and primary metric of each client; for the summary, mean and worst over the clients.

    Metrics are means of the last five evaluations. A client without a metric (AUROC of one class) does not count.
    """
    primary = task.primary
    clients = {}
    for name, stats in own[-1].items():
        values = [task.measure(round_[name])[primary.name] for round_ in own[-LAST:]]
        finite = [value for value in values if math.isfinite(value)]
        last5 = fmean(finite) if finite else None
        clients[name] = {"examples": int(stats[EXAMPLES]), "last5": last5}
    known = [one["last5"] for one in clients.values() if one["last5"] is not None]
    if not known:
        return {"clients": clients}
    worst = min(known) if primary.higher_is_better else max(known)
    return {"clients": clients, "summary": {"client mean": fmean(known), "worst of clients": worst}}


def _sum(of_clients: OfClients) -> Stats:
    total: Stats = {}
    for stats in of_clients.values():
        add_stats(total, stats)
    return total
