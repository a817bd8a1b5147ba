"""Before round 1: a task may ask every client once for additive sums of its data.

Driven by the loop of the run. The task alone knows what a sum means and writes what follows into the model. The
model carries it from then on: to clients, also those that join later, into checkpoints and the export.
"""

from __future__ import annotations

import copy

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fednc.common.errors import ConfigError, DataError, QuorumError
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Task
from fednc.common.tasks.metrics import Stats
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import DATA_SUMS, Instruction
from fednc.server.aggregation.total_sums import TotalSums
from fednc.server.rounds.global_state import GlobalState
from fednc.server.rounds.reply_contents import data_sums_in
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.rounds.sums_exchange import Answers, Question, ask_until_quorum
from fednc.server.storage.events import DataSumsAdded, DataSumsMissing


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


def add_data_sums(strategy: FrameStrategy, model: nn.Module, answers: Answers) -> None:
    """Let the task write the totals of the clients' answers into model and state.

    Raises:
        DataError: the task made values that are not finite.
    """
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


def ask_for_data_sums(strategy: FrameStrategy, grid: Grid) -> Answers:
    """The answers of all connected clients. One that fails is asked again only while too few have answered.

    Raises:
        QuorumError: too few clients answered, in three tries.
        DataError: most clients sent values that are not finite.
    """
    answers, replies = Answers(TotalSums(strategy.task.no_data_sums())), strategy.replies
    question = Question(
        kind=DATA_SUMS,
        server_round=0,
        content=messages.instruction_content(Instruction.under(strategy.run, 1)),
        read=lambda content, announced: data_sums_in(content, strategy.task, announced),
        point="server.data_sums",
    )
    if ask_until_quorum(strategy, grid, question, answers):
        return answers
    if answers.diverged:
        raise DataError(
            "most clients sent sums of their data that are not finite or far out of bounds "
            f"({replies.reasons}). Look for such values in their training data."
        )
    raise QuorumError(
        f"{len(answers.nodes)} clients answered the request for sums of the data, {strategy.quorum} are needed "
        f"({replies.reasons}). Fix the clients, or lower rounds.min_clients."
    )


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
