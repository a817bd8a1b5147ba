"""A round with one honest update in its sum, attacked by a node, a stranger and an operator."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fednc.client.link.channel import open_channel
from fednc.common.config.run import parse_run
from fednc.common.security.credentials import Role
from fednc.common.wire import messages as exchange
from fednc.protos import federation_pb2 as pb
from fednc.server.aggregation.mean import Fold
from fednc.server.link.assignments import Batch
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid, ReplyStream
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.listener import make_server
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.hostile.calls import CALL_S, OVERTAKEN, Caller, together
from support.hostile.messages import OK, Attack
from support.hostile.replies import DUPLICATE, EXAMPLES, FAR, HostileReply, Model, honest_content
from support.local_servers import Serving, make_place, until
from support.raw_node import RawNode, attending_by_hand

T = TypeVar("T")
DIM = 16


class Complaints(logging.Handler):
    """What gRPC and asyncio log: exceptions that nobody caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))


class HostilePlace:
    """Runs on its own event loop, which is idle between two attacks."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack, self._runner = folder, AsyncExitStack(), asyncio.Runner()
        self._complaints = Complaints()
        for name in ("grpc", "grpc._cython.cygrpc", "asyncio"):
            logging.getLogger(name).addHandler(self._complaints)
        self._batches: queue.SimpleQueue[tuple[Batch, threading.Event] | None] = queue.SimpleQueue()
        self.run(self._start())

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(what)

    # ---- before --------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        place = make_place(self._folder)
        (self._folder / "run").mkdir()
        self._log = EventLog(self._folder / "run" / "events.jsonl")
        run = parse_run(
            {
                "task": {"name": "image", "classes": list("0123456789"), "size": 8, "channels": 1, "width": 8},
                "frame": {"dim": DIM},
                "rounds": {"min_clients": 1, "max_update_norm": FAR},
                "server": place.section(auth="token", quarantine_after=0, listen="127.0.0.1:0"),
            }
        )
        self.prepared = FederatedRun(run, self._log)
        self.model = Model({key: value.clone() for key, value in self.prepared.state.model.items()})
        self.federation = Federation("run", run, self._folder / "run" / "spool", self._log)
        self.federation.schema = ReplySchema.of(
            self.prepared.task,
            self.prepared.state.model,
            self.prepared.state.extra,
            is_first=True,
        )
        self.federation.door.keep_in(self._folder / "run")
        self._listening = await make_server(self.federation, run.server.listen)
        await self._listening.start()
        self.server = Serving(self.federation, self._listening, [], RunControl())
        self.honest, self.hostile = [await self._attend(name, place.token(name)) for name in ("honest", "hostile")]
        self._callers = {
            "hostile": Caller(self.hostile.channel, self.hostile.metadata),
            "stranger": await self._stranger(place.token("stranger")),
            "operator": await self._stranger(place.token("ops", Role.OPERATOR)),
        }
        await self._begin_round()

    async def _stranger(self, credentials: Any) -> Caller:
        channel = open_channel(self.server.address, credentials, 60)
        return Caller(await self._stack.enter_async_context(channel))

    async def _attend(self, name: str, credentials: Any) -> RawNode:
        node = await self._stack.enter_async_context(
            attending_by_hand(self.federation, self._listening.port, name, credentials)
        )
        task = asyncio.create_task(self._answer(node))
        self._stack.callback(task.cancel)
        return node

    async def _answer(self, node: RawNode) -> None:
        """Answer the server's questions, with the number of examples."""
        with suppress(grpc.aio.AioRpcError):
            while (event := await node.events.read()) is not grpc.aio.EOF:
                work = self.federation.find_work(node.node, event.assignment.id)
                if event.assignment.id.message_type == exchange.HELLO and not isinstance(work, pb.Receipt):
                    counts = [1] * EXAMPLES + [0] * (self.prepared.task.label_space - EXAMPLES)
                    held = {exchange.EXAMPLES: EXAMPLES, exchange.HELD_OUT: 0, exchange.CLASS_COUNTS: counts}
                    content = RecordDict({exchange.METRICS: MetricRecord(held)})
                    await node.send(work, content)

    async def _begin_round(self) -> None:
        grid = LinkGrid(self.federation, asyncio.get_running_loop())
        self._strategy = strategy = self.prepared.strategy(Surroundings(reject=grid.reject))
        record = self.prepared.state.record
        messages = await asyncio.to_thread(strategy.configure_train, 1, record, ConfigRecord(), grid)
        assert len(messages) == 2
        self._thread = threading.Thread(target=strategy.aggregate_train, args=(1, self._replies(grid)))
        self._thread.start()
        update = {key: value + 0.25 if value.is_floating_point() else value for key, value in self.model.items()}
        self._update = honest_content(update)
        work = self.honest.give_work(exchange.TRAIN)
        assert (await self.honest.send(work, self._update)).outcome == pb.Receipt.COMMITTED
        await self._hand_to_strategy(self.honest)
        self._mean = self._fold_state()

    def _replies(self, grid: LinkGrid) -> Iterator[Message]:
        """In the strategy's thread: the result of each batch, until there are no more."""
        while (given := self._batches.get()) is not None:
            batch, done = given
            replies = ReplyStream(grid, batch, 0)
            while (message := replies.poll()) is not None:
                yield message
            replies.close()
            done.set()

    async def _hand_to_strategy(self, node: RawNode) -> None:
        """Settle the node's assignments or give them up."""
        done = threading.Event()
        node.batch, batch = Batch(), node.batch
        self._batches.put((batch, done))
        assert await asyncio.to_thread(done.wait, CALL_S), "the strategy hangs"

    # ---- what must not change ------------------------------------------------------------------------------

    def _fold_state(self) -> tuple[int, int, str]:
        fold = self._strategy._fold
        data = b"".join(bytes(array.data) for array in fold.mean().values())
        return fold.updates, fold.weight, hashlib.sha256(data).hexdigest()

    def _roster(self, names: Iterable[str]) -> list[Any]:
        found = [self.federation.roster.by_name(name) for name in names]
        return [
            (
                n.name,
                n.state,
                n.attendance,
                n.examples,
                n.held_out,
                n.class_counts,
                n.device,
                n.pid,
                n.problem,
                n.part,
            )
            for n in found
            if n
        ]

    def _disk(self) -> dict[str, tuple[int, int]]:
        files = [path for path in (self._folder / "run").rglob("*") if path.is_file()]
        stats = {str(path): path.stat() for path in files if path.name != "events.jsonl"}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}

    def logged(self) -> Counter[str]:
        """Number of log lines of each kind."""
        lines = (self._folder / "run" / "events.jsonl").read_text().splitlines()
        return Counter(line.partition('"kind": "')[2].partition('"')[0] for line in lines)

    async def unharmed(self, attack: Awaitable[None], *, may_change: Sequence[str] = ()) -> Counter[str]:
        """Refusals counted during the attack; checks that nothing else has changed."""
        names = [name for name in ("honest", "hostile") if name not in may_change]
        before, files, refusals = self._roster(names), self._disk(), self.federation.door.rejections.copy()
        async with asyncio.timeout(2 * CALL_S):
            await attack
        await self._hand_to_strategy(self.hostile)
        await until(lambda: self.hostile.node.calls == 0)
        assert self._roster(names) == before
        assert set(self.server.names()) <= {"honest", "hostile", "stranger"}
        now = self._disk()
        assert now == files, now.keys() ^ files.keys()
        assert self._fold_state() == self._mean, self._attacking
        assert self.federation.intake.budget.used_bytes == 0
        assert self.federation.at_work() == {}
        await until(self.hostile.node.outbox.empty)
        assert self._complaints.heard == []
        return self.federation.door.rejections - refusals

    # ---- attacks -------------------------------------------------------------------------------------------

    async def send_all(self, name: str, attacks: Sequence[Attack], caller: str) -> None:
        """Send each in its own call, a few at once, and check how each ends."""
        ends = await together(lambda attack: self._callers[caller].send(name, attack.message), attacks)
        for attack, (code, details) in zip(attacks, ends, strict=True):
            assert code is attack.code, f"{attack} ended with {code}: {details}"

    async def send_gibberish(self, name: str, messages: Sequence[bytes], caller: str) -> list[grpc.StatusCode]:
        """The same with arbitrary bytes."""
        ends = await together(lambda message: self._callers[caller].send(name, message), messages)
        return [code for code, _ in ends]

    async def upload_all(self, replies: Sequence[HostileReply]) -> Counter[str]:
        """Upload each reply for its own assignment; return the refusals that must be counted."""
        self._attacking = replies
        works = [self.hostile.give_work(exchange.TRAIN) for _ in replies]
        caller, pairs = self._callers["hostile"], list(zip(replies, works, strict=True))
        ends = await together(lambda both: caller.reply(both[0], both[1].id), pairs)
        for reply, (outcome, code, details) in zip(replies, ends, strict=True):
            expected = [(DUPLICATE if reply.times > 1 else reply.outcome, reply.code)]
            if details == OVERTAKEN:
                expected.append((None, OK))
            assert (outcome, code) in expected, f"{reply} ended with {outcome} {code}: {details}"
        return Counter(reply.counted for reply in replies if reply.counted)

    async def upload_gibberish(self, replies: Sequence[HostileReply]) -> list[grpc.StatusCode]:
        """Upload arbitrary frames, whatever the outcome."""
        self._attacking = replies
        works = [self.hostile.give_work(exchange.TRAIN) for _ in replies]
        caller, pairs = self._callers["hostile"], list(zip(replies, works, strict=True))
        ends = await together(lambda both: caller.upload(both[0].to_frames(both[1].id)), pairs)
        return [code for _, code, _ in ends]

    # ---- after ---------------------------------------------------------------------------------------------

    def finish(self) -> ArrayRecord:
        """End the round and return its model."""
        self._batches.put(None)
        # Not joined on the event loop: the strategy counts its refusals there.
        self.run(asyncio.to_thread(self._thread.join, CALL_S))
        assert not self._thread.is_alive()
        return self.prepared.state.record

    def honest_model(self) -> ArrayRecord:
        """The model of the honest update alone."""
        fold = Fold(self.model)
        fold.start(self.model, [EXAMPLES, EXAMPLES])
        fold.add(exchange.update_of(self._update), EXAMPLES)
        return fold.mean()

    def close(self) -> None:
        """Stop everything."""

        async def stop() -> None:
            await self._stack.aclose()
            await self._listening.stop(0)

        self.run(stop())
        self._runner.close()
        self._log.close()
