"""If training diverges, no client is blamed and the last good model is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app as honest_app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import DivergedError
from fednc.common.wire import arrays
from fednc.common.wire.messages import MODEL, STATS, SUMS, Instruction
from fednc.protos import federation_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.main import run_server
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.history import History, RoundRecord

App = Callable[[Message, Context], Message]


def config(parts: int = 2, **rounds: Any) -> RunConfig:
    return parse_run(
        {
            "task": {"classes": [str(digit) for digit in range(10)], "size": 8, "channels": 1, "width": 8},
            "frame": {"dim": 16},
            "rounds": {"total": 4, "min_clients": 2, "evaluate_every": 1, **rounds},
            "split": {"kind": "iid", "parts": parts},
            "server": {"listen": "127.0.0.1:0"},
        }
    )


def breaks_down(names: set[str], record: str = MODEL, first: int = 3) -> App:
    """The shipped app; from round `first` on, these clients send NaN in one of their records."""

    def app(message: Message, context: Context) -> Message:
        reply = honest_app(message, context)
        broken = Instruction.of(message).server_round >= first and str(context.node_config["name"]) in names
        if broken and record in reply.content:
            tensors = arrays.from_record(reply.content[record])
            tensors = {
                key: value * torch.nan if value.is_floating_point() else value for key, value in tensors.items()
            }
            reply.content[record] = arrays.to_record(tensors)
        return reply

    return app


def carry_out(parts: int, app: App) -> tuple[FederatedRun, set[str], str]:
    """The finished run, the nodes that got a strike, and the error that ended it."""
    run, rejected, ended = config(parts), set[str](), ""
    prepared = FederatedRun(run, EventLog())
    clients = [ClientConfig(name=f"c{index}", data="digits", device="cpu") for index in range(parts)]
    with LocalGrid(run, clients, app) as grid:

        def reject(node: int, _why: str) -> None:
            rejected.add(grid.name_of(node))

        try:
            prepared.execute(grid, Surroundings(name_of=grid.name_of, reject=reject))
        except DivergedError as e:
            ended = str(e)
    return prepared, rejected, ended


@pytest.mark.parametrize("record", [MODEL, SUMS, STATS])
def test_if_most_clients_break_down_the_state_goes_back_by_one_round(record: str) -> None:
    prepared, rejected, ended = carry_out(2, breaks_down({"c0", "c1"}, record))
    assert "diverged in round 3" in ended
    assert "Lower train.lr (0.03)" in ended
    assert rejected == set()
    assert prepared.state.completed == 2
    assert prepared.last_good is not None
    early = config(total=2)
    good = FederatedRun(early, EventLog())
    clients = [ClientConfig(name=f"c{index}", data="digits", device="cpu") for index in range(2)]
    with LocalGrid(early, clients) as grid:
        good.execute(grid)
    for key, value in prepared.last_good.state.model.items():
        assert torch.equal(value, good.state.model[key])


def test_one_of_three_gets_a_strike() -> None:
    prepared, rejected, ended = carry_out(3, breaks_down({"c2"}))
    assert (rejected, ended) == ({"c2"}, "")
    assert prepared.state.completed == 4


def test_a_model_whose_loss_explodes_is_not_the_last_good_one() -> None:
    history = History(rounds=[RoundRecord(round=1, loss=2.0), RoundRecord(round=2, loss=1.5)])
    assert not history.has_exploded
    history.rounds.append(RoundRecord(round=3, loss=16.0))
    assert history.has_exploded
    small = [RoundRecord(round=1, loss=0.001), RoundRecord(round=2, loss=0.5)]
    assert not History(rounds=small).has_exploded


def test_over_the_link_files_are_left_and_clients_end_well(tmp_path: Path) -> None:
    async def main() -> list[pb.RunOver]:
        attending: list[asyncio.Task[pb.RunOver]] = []
        app, run = breaks_down({"c0", "c1"}), config()

        def listening(federation: Federation, port: int) -> None:
            for index in range(2):
                client = ClientConfig(name=f"c{index}", data="digits", device="cpu")
                part = pb.Part(index=index, of=2)
                link = LinkConfig(server=f"127.0.0.1:{port}", name=client.name, part=part, once=True)
                attending.append(asyncio.create_task(Link(link, AppHost(client, app)).run()))

        with pytest.raises(DivergedError):
            await run_server(run, tmp_path, EventLog(), on_listening=listening)
        return await asyncio.gather(*attending)

    overs = asyncio.run(main())
    assert [over.failed for over in overs] == [False, False]
    assert all("diverged in round 3" in over.reason for over in overs)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rounds"], "diverged" in summary["ended"]) == (2, True)
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == 2
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "quarantine.json").exists()
