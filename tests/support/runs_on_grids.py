"""A whole run on each of our grids, for tests that compare them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Message
from torch import Tensor

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig
from fednc.common.wire.messages import TRAIN, Instruction
from fednc.protos import federation_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.listener import serve
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog

App = Callable[[Message, Context], Message]


def trained_by(prepared: FederatedRun) -> dict[str, Tensor]:
    """The tensors that clients send."""
    model, task = prepared.state.model, prepared.task
    return {key: model[key] for key in task.trained_keys(task.build_model(), task.stage(1))}


def in_one_process(
    run: RunConfig, clients: Sequence[ClientConfig], app: App, around: Surroundings | None = None
) -> RunResult:
    prepared = FederatedRun(run, EventLog())
    with LocalGrid(run, clients, app) as grid:
        return prepared.execute(grid, around or Surroundings(name_of=grid.name_of))


def over_the_link(
    run: RunConfig, clients: Sequence[ClientConfig], app: App, folder: Path, *, agreed: bool = False
) -> RunResult:
    """A real server on a free port, each client with a real link. `agreed` limits what they may send."""

    async def main() -> RunResult:
        prepared = FederatedRun(run, EventLog())
        federation = Federation(f"test-{uuid4().hex}", run, folder / "spool", EventLog())
        if agreed:
            schema = ReplySchema.of(prepared.task, trained_by(prepared), initial=prepared.layout, is_first=True)
            federation.expect(schema)
        attending: list[asyncio.Task[pb.RunOver]] = []
        ports: list[int] = []

        def attend(index: int, client: ClientConfig) -> None:
            part = pb.Part(index=index, of=len(clients)) if run.split else None
            config = LinkConfig(server=f"127.0.0.1:{ports[0]}", name=client.name, part=part, once=True)
            attending.append(asyncio.create_task(Link(config, AppHost(client, app)).run()))

        def work(grid: LinkGrid) -> RunResult:
            for index, client in enumerate(clients):  # one by one: before 3.11.8 CPython cannot parse in threads
                grid.call(partial(attend, index, client))
                while len(grid.get_node_ids()) <= index:
                    assert not attending[index].done(), attending[index].exception()
                    time.sleep(0.01)
            return prepared.execute(grid, Surroundings(name_of=grid.name_of))

        result = await serve(federation, work, address="127.0.0.1:0", on_listening=ports.append)
        await asyncio.gather(*attending)
        return result

    return asyncio.run(main())


class RestartingGrid(LocalGrid):
    """Every client ends and starts again before it trains."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        if any(message.metadata.message_type == TRAIN for message in messages):
            for index, (node, host) in enumerate(self._hosts.items()):
                host.leave()
                host.prepare(self._welcome(node, _run_of(messages[0]), index))
        return super().send_and_receive(messages, timeout=timeout)


def _run_of(message: Message) -> RunConfig:
    return RunConfig.model_validate_json(Instruction.of(message).run_json)


class DeafGrid(LocalGrid):
    """The server does not get what one client replies in one round of training, though the client has worked."""

    def __init__(self, run: RunConfig, clients: Sequence[ClientConfig], name: str, server_round: int) -> None:
        super().__init__(run, clients)
        self._name, self._lost = name, server_round

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        return (reply for message, reply in zip(messages, replies, strict=True) if not self._is_lost(message))

    def _is_lost(self, message: Message) -> bool:
        meta = message.metadata
        name = self._names[meta.dst_node_id]
        return meta.message_type == TRAIN and (name, int(meta.group_id)) == (self._name, self._lost)
