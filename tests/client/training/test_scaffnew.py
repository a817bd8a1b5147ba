"""Scaffnew's control variates: no bytes, no sum, off at 0, and only in a round that follows the client's own."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app as fednc_app
from fednc.client.training.round_state import Past
from fednc.common.config.tables import TrainSection
from fednc.common.methods.api import LocalRound
from fednc.common.methods.fednova import effective_steps
from fednc.common.methods.scaffnew import LENGTH, OWN_CONTROL, SHIFT, OwnControl
from fednc.common.wire.messages import EXAMPLES, METRICS, TRAIN
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.contract_run import CLIENTS, assert_same_bits, config


def at_round(number: int, model: nn.Module, record: RecordDict, train: TrainSection) -> LocalRound:
    names = frozenset(dict(model.named_parameters()))
    past = Past(record, number)
    return LocalRound(model=model, stepped=names, received={}, state=past, train=train, number=number, lr=train.lr)


def walk(added: OwnControl, model: nn.Module, train: TrainSection, steps: int) -> None:
    """Local training along a gradient of 1."""
    sgd = torch.optim.SGD(model.parameters(), lr=train.lr, momentum=train.momentum)
    for _ in range(steps):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        added.on_gradients()
        sgd.step()
    added.finish()


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_correction_is_the_own_change_beyond_the_mean_one_per_length(momentum: float, share: float) -> None:
    train, record, mean = TrainSection(lr=0.05, momentum=momentum), RecordDict(), 0.25
    model = nn.Linear(3, 2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    walk(OwnControl(at_round(1, model, record, train), share), model, train, steps=4)
    own = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    model.load_state_dict({name: value + mean for name, value in start.items()})
    again = OwnControl(at_round(2, model, record, train), share)
    again.on_gradients()
    again.finish()
    shift = Past(record, 3).read(OWN_CONTROL)
    for name, change in own.items():
        wanted = share * (mean - change) / (train.lr * effective_steps(4, train))
        torch.testing.assert_close(shift[SHIFT + name], wanted, atol=1e-5, rtol=1e-5)


def test_a_client_that_missed_a_round_corrects_nothing() -> None:
    train, record, model = TrainSection(), RecordDict(), nn.Linear(2, 2)
    walk(OwnControl(at_round(1, model, record, train), 1.0), model, train, steps=2)
    model.weight.data += 1
    for number, is_next in ((2, True), (3, False)):
        added = OwnControl(at_round(number, model, record, train), 1.0)
        gradient = torch.zeros(2, 2)
        model.weight.grad = gradient.clone()
        added.on_gradients()
        assert (not torch.equal(model.weight.grad, gradient)) == is_next


def totals(run_values: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """After three rounds: the sum over all clients of the changes that their corrections make, and the largest."""
    contexts: dict[str, tuple[Context, int]] = {}

    def remember(message: Message, context: Context) -> Message:
        reply = fednc_app(message, context)
        if message.metadata.message_type == TRAIN:
            examples = cast(int, reply.content.metric_records[METRICS][EXAMPLES])
            contexts[str(context.node_config["name"])] = context, examples
        return reply

    run = config(**run_values)
    with LocalGrid(run, CLIENTS, remember) as grid:
        FederatedRun(run, EventLog()).execute(grid)
    kept = [(Past(context.state, 99).read(OWN_CONTROL), n) for context, n in contexts.values()]
    key = next(key for key in kept[0][0] if key.startswith(SHIFT) and "weight" in key)
    parts = torch.stack([n * float(own[LENGTH]) * own[key].double() for own, n in kept])
    return parts.sum(dim=0).abs().max(), parts.abs().max()


def test_the_corrections_of_all_clients_add_up_to_zero() -> None:
    """By the change that they make to the mean, although clients take different numbers of steps."""
    rounds = {"total": 3, "outlier_ratio": 0}
    summed, largest = totals({"method": {"name": "scaffnew"}, "rounds": rounds, "train": {"batch": 16}})
    assert largest > 0
    assert summed < 1e-4 * largest


def test_nothing_more_is_sent_and_at_0_it_is_plain_averaging() -> None:
    traffic, results = [], []
    for method in ({"name": "fedavg"}, {"name": "scaffnew"}, {"name": "scaffnew", "own_control": 0}):
        run = config(method=method)
        with LocalGrid(run, CLIENTS) as grid:
            results.append(FederatedRun(run, EventLog()).execute(grid))
            traffic.append(grid.traffic()[0])
    assert len(set(traffic)) == 1
    assert_same_bits(results[0], results[2])
