"""After the last round: one exchange for the temperature of the read-out, one for the clients' personal models.

Driven by the loop of the run. Neither changes the model's weights or is needed for the run's result: a client that
does not answer is left out, and if nobody answers, the run ends without. A restarted server asks again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fednc.common.tasks import personal, temperature
from fednc.common.tasks.metrics import EXAMPLES, Stats
from fednc.common.wire.messages import CALIBRATE, PERSONAL, Instruction
from fednc.server.aggregation.total_sums import TotalSums
from fednc.server.rounds.replies import Content
from fednc.server.rounds.reply_contents import is_named, losses_in, personal_in
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.rounds.sums_exchange import Answers, PooledStats, Question, ask_once
from fednc.server.storage.events import CalibrationMissing, ModelCalibrated, PersonalModels
from fednc.server.storage.history import spread_of


@dataclass
class Afterwards:
    """What was found after the last round.

    Attributes:
        temperature: what scores are divided by; 1 if none was fitted.
        calibration: for summary.json: what the temperature was fitted on, and what it is worth on the test data.
        personal: for summary.json: metrics of the final model and of the clients' own models; {} without them.
    """

    temperature: float = 1.0
    calibration: dict[str, Any] = field(default_factory=dict)
    personal: dict[str, Any] = field(default_factory=dict)


def fit_temperature(strategy: FrameStrategy, grid: Grid) -> Afterwards:
    """Ask for losses at a grid of temperatures and choose the one with the least loss. See `temperature.py`."""
    answers = Answers(TotalSums(temperature.no_losses()))
    question = Question(
        kind=CALIBRATE,
        server_round=strategy.state.completed,
        content=_content(strategy),
        read=losses_in,
        point="server.calibrate",
    )
    held_out = _holders(strategy, grid, held_out=True)
    counted = strategy.clients.held_out(held_out)
    ask_once(strategy, grid, question, {node: held_out[node] for node in counted}, counted, answers)
    sums = answers.total.value()
    found = None if answers.diverged else temperature.fitted(sums)
    if found is None:
        strategy.events.emit(CalibrationMissing(text=_why_missing(strategy, bool(held_out))))
        return Afterwards()
    rows = int(sums[temperature.ROWS])
    loss_G = (sums[temperature.LOSS] / rows).tolist()
    at_one, at_best = loss_G[temperature.GRID.index(1)], min(loss_G)
    clients = len(answers.added)
    text = (
        f"temperature {found:.3g}: the log-loss on {rows} examples that {clients} clients hold out of "
        f"training falls from {at_one:.3f} to {at_best:.3f}"
    )
    strategy.events.emit(ModelCalibrated(text=text, temperature=found, clients=clients, examples=rows))
    told = {"temperature": found, "clients": clients, "held_out_examples": rows}
    return Afterwards(found, {**told, "held_out_loss": {"before": at_one, "after": at_best}})


def _why_missing(strategy: FrameStrategy, were_asked: bool) -> str:
    why = f"no usable answer ({strategy.replies.reasons})" if were_asked else "no client holds examples out"
    return (
        f"confidences are not calibrated: {why}. The read-out keeps temperature 1. Clients hold a tenth out "
        "unless --val-share says otherwise; evaluate.temperature = false asks for none"
    )


def ask_for_personal_models(strategy: FrameStrategy, grid: Grid, fitted: float) -> dict[str, Any]:
    """Let every client adapt the final model to its own data; what they report, for summary.json."""
    task = strategy.task
    told: list[tuple[str, dict[str, dict[str, float]]]] = []  # (name or "", metrics by way) of each client

    def note(node: int, content: RecordDict, stats: Stats) -> None:
        measured = {way: task.measure(one) for way, one in personal.apart(stats, task).items()}
        told.append((strategy.replies.name_of(node) if is_named(content) else "", measured))

    answers = Answers(PooledStats())
    question = Question(
        kind=PERSONAL,
        server_round=strategy.state.completed,
        content=_content(strategy, fitted),
        read=lambda content, announced: personal_in(content, task, announced),
        point="server.personal",
        added=note,
    )
    claims = _holders(strategy, grid, held_out=False)
    held_out = {node: strategy.clients.holding(node).held_out for node in claims}
    ask_once(strategy, grid, question, held_out, strategy.clients.held_out(claims), answers)
    pooled = {way: task.measure(one) for way, one in personal.apart(answers.total.value(), task).items()}
    found = {
        "clients": len(answers.added),
        "withheld": len(answers.withheld),
        "pooled": {way: _short(strategy, one) for way, one in pooled.items()},
        "spread": {
            way: spread_of([_primary(strategy, one[way]) for _, one in told]) for way in personal.ways(task)
        },
        "by_client": {
            name: {way: _short(strategy, one) for way, one in measured.items()}
            for name, measured in sorted(told, key=itemgetter(0))
            if name
        },
    }
    metric = task.primary
    values = [(way, one.get(metric.name, math.nan)) for way, one in pooled.items()]
    shown = ", ".join(f"{way} {metric.show(value)}" for way, value in values if math.isfinite(value))
    text = f"personal models of {len(answers.added)} clients: {metric.name} {shown or 'unknown'}"
    strategy.events.emit(PersonalModels(text=text, answered=len(answers.added), withheld=len(answers.withheld)))
    return found


def _content(strategy: FrameStrategy, fitted: float = 1.0) -> Content:
    order = Instruction.under(strategy.run, strategy.state.completed, temperature=fitted)
    return strategy.to_each(order, strategy.state.record, strategy.guide(evaluates=True))


def _holders(strategy: FrameStrategy, grid: Grid, *, held_out: bool) -> dict[int, int]:
    """The present clients with held-out, or training, examples, and how many of them they announced."""
    strategy.clients.forget(strategy.replies.failed)
    strategy.replies.forget_failures()  # those of the last round stay in its record
    server_round = strategy.state.completed
    nodes = strategy.clients.present(server_round, sorted(grid.get_node_ids()))
    strategy.get_to_know(nodes, server_round, grid)
    holdings = {node: strategy.clients.holding(node) for node in nodes}
    counts = {node: one.held_out if held_out else one.examples for node, one in holdings.items()}
    return {node: count for node, count in counts.items() if count}


def _primary(strategy: FrameStrategy, metrics: Mapping[str, float]) -> float:
    return metrics[strategy.task.primary.name]


def _short(strategy: FrameStrategy, metrics: Mapping[str, float]) -> dict[str, float]:
    """The task's metrics without their details."""
    names = [EXAMPLES, *(metric.name for metric in strategy.task.measured_by)]
    return {name: metrics[name] for name in names if math.isfinite(metrics.get(name, math.nan))}
