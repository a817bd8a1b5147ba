"""Class sums of another form than was asked for, on a grid without our link's schema: that reply alone is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flwr.app import Context, Message

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app as honest
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import ClassSums
from fednc.common.wire import messages
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog

RUN = parse_run(
    {
        "seed": 1,
        "task": {
            "name": "image",
            "classes": [str(digit) for digit in range(10)],
            "model": "cnn",
            "width": 8,
            "size": 8,
            "channels": 1,
        },
        "frame": {"dim": 16},
        "rounds": {"total": 2, "min_clients": 2},
        "split": {"kind": "iid", "parts": 4},
    }
)


def narrow(sums: ClassSums) -> ClassSums:
    moment_DD = None if sums.moment_DD is None else sums.moment_DD[:5, :5]
    return replace(sums, sum_KD=sums.sum_KD[:, :5], moment_DD=moment_DD)


def without_moments(sums: ClassSums) -> ClassSums:
    return replace(sums, moment_DD=None)


def fewer_classes(sums: ClassSums) -> ClassSums:
    return replace(sums, sum_KD=sums.sum_KD[:3], count_K=sums.count_K[:3])


@pytest.mark.parametrize("change", [narrow, without_moments, fewer_classes])
def test_the_run_goes_on_without_the_reply(change: Callable[[ClassSums], ClassSums]) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if messages.SUMS in reply.content and context.node_config["name"] == "liar":
            reply.content[messages.SUMS] = messages.sums_record(change(messages.sums_of(reply.content)))
        return reply

    names = ["a", "b", "c", "liar"]
    clients = [ClientConfig(name=name, data="digits", device="cpu", val_share=0) for name in names]
    with LocalGrid(RUN, clients, app=app) as grid:
        run = FederatedRun(RUN, EventLog(), torch.device("cpu"))
        run.execute(grid, Surroundings(name_of=grid.name_of))
    assert len(run.history.rounds) == 2
    for record in run.history.rounds:
        assert set(record.failures) == {"liar"}
        assert "class" in record.failures["liar"]
