"""Before round 1: a task may ask every client once for additive sums of its data.

Driven by the loop of the run. The task alone knows what a sum means and writes what follows into the model. The
model carries it from then on: to clients, also those that join later, into checkpoints and the export.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fednc.common import fault_injection
from fednc.common.errors import ConfigError, DataError, ProtocolError, QuorumError, StaleError
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Task
from fednc.common.tasks.metrics import Stats
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import DATA_SUMS, Instruction
from fednc.server.aggregation.total_sums import TotalSums
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.reply_contents import data_sums_in, of_fewer
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.storage.events import DataSumsAdded, DataSumsMissing

_TRIES = 3  # as for a round


@dataclass
class _Answers:
    """What clients said so far.

    Attributes:
        added: nodes whose sums are in the total. withheld: nodes that sent none.
    """

    total: TotalSums
    added: set[int] = field(default_factory=set)
    withheld: set[int] = field(default_factory=set)

    @property
    def nodes(self) -> set[int]:
        """Nodes that need not be asked again."""
        return self.added | self.withheld


def check_form(task: Task) -> bool:
    """Whether the task asks for sums of the data. Raises ConfigError: it declares sums in another form."""
    none = task.no_data_sums()
    for name, zero in none.items():
        if zero.dtype not in (torch.float64, torch.int64) or bool(zero.any()):
            raise ConfigError(
                f"task {task.name!r}: no_data_sums() gives {name!r} as {zero.dtype}: expected zeros of float64 "
                "or int64"
            )
    return bool(none)


def add_data_sums(strategy: FrameStrategy, model: nn.Module, grid: Grid) -> None:
    """Ask every connected client, and let the task write the totals into model and state.

    Raises:
        QuorumError: too few clients answered, in three tries.
        DataError: most clients sent values that are not finite, or the task made some.
    """
    answers = _ask(strategy, grid)
    counts = {"answered": len(answers.added), "withheld": len(answers.withheld)}
    if answers.added:
        put_data_sums(strategy.task, model, strategy.state, answers.total.value())
        text = f"sums of the data of {len(answers.added)} clients are in the model"
        text += f"; {len(answers.withheld)} clients withheld theirs" if answers.withheld else ""
        strategy.events.emit(DataSumsAdded(text=text, **counts))
    else:
        text = (
            f"all {len(answers.withheld)} clients withheld the sums of their data: the model starts without them. "
            "Too few training examples, or not allowed by their owners (allow.data_sums)"
        )
        strategy.events.emit(DataSumsMissing(text=text, **counts))


def _ask(strategy: FrameStrategy, grid: Grid) -> _Answers:
    """The answers of all clients. A client that fails is asked again only while too few have answered."""
    answers, replies = _Answers(TotalSums(strategy.task.no_data_sums())), strategy.replies
    content = messages.instruction_content(Instruction.under(strategy.run, 1))
    timeout_s = strategy.run.rounds.deadline_s
    for _ in range(_TRIES):
        counted = strategy.clients.examples([*strategy.holders(grid), *answers.nodes])
        nodes = [node for node, count in counted.items() if count and node not in answers.nodes]
        for reply in replies.ask(grid, content, nodes, DATA_SUMS, 0, timeout_s):
            node = reply.metadata.src_node_id
            replies.take(reply, partial(_take, strategy=strategy, answers=answers, node=node, counted=counted))
        strategy.clients.note_answers(1, nodes)
        if replies.settle():
            raise DataError(
                "most clients sent sums of their data that are not finite or far out of bounds "
                f"({replies.reasons}). Look for such values in their training data."
            )
        if len(answers.nodes) >= strategy.quorum:
            return answers
        strategy.clients.forget(replies.failed)
    raise QuorumError(
        f"{len(answers.nodes)} clients answered the request for sums of the data, {strategy.quorum} are needed "
        f"({replies.reasons}). Fix the clients, or lower rounds.min_clients."
    )


def _take(
    content: RecordDict, strategy: FrameStrategy, answers: _Answers, node: int, counted: Mapping[int, int]
) -> None:
    fault_injection.at("server.data_sums")
    announced = strategy.clients.holding(node).examples
    try:
        sums = data_sums_in(content, strategy.task, announced)
    except ProtocolError as e:
        if strategy.clients.has_changed(node):
            raise StaleError(str(e)) from e
        raise
    if sums is None:
        answers.withheld.add(node)
        return
    answers.total.add(of_fewer(sums, counted[node], announced))
    answers.added.add(node)


def put_data_sums(task: Task, model: nn.Module, state: GlobalState, sums: Stats) -> None:
    """Write what the task makes of the totals into `state`. `model` is one of the task's; it stays as it is.

    Raises:
        ConfigError: the task wrote into a key that is not FIXED, or changed its shape or type.
        DataError: the task wrote values that are not finite.
    """
    model = copy.deepcopy(model).cpu()
    model.load_state_dict(state.model, strict=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        task.with_data_sums(model, sums)
    after = model.state_dict()
    if set(after) != set(before):
        raise ConfigError(f"task {task.name!r}: with_data_sums() changed the names of the model's state")
    changed = {key: value for key, value in after.items() if not _same(before[key], value)}
    for key, value in changed.items():
        _check_written(task, key, before[key], value)
    written = ArrayRecord()
    written.update(arrays.to_record({key: value.clone() for key, value in changed.items()}))
    state.put(written)


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(one, other)


def _check_written(task: Task, key: str, before: Tensor, after: Tensor) -> None:
    if task.combining(key) != Aggregation.FIXED:
        raise ConfigError(
            f"task {task.name!r}: with_data_sums() wrote {key!r}, whose aggregation is "
            f"{task.combining(key).value!r}. Write only keys that aggregation() says are FIXED"
        )
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise ConfigError(f"task {task.name!r}: with_data_sums() changed shape or type of {key!r}")
    if not bool(after.isfinite().all()):
        raise DataError(f"task {task.name!r}: the sums of the data give values of {key!r} that are not finite")
