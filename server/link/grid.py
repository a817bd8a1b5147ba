"""Flower's `Grid` over our link. Any Flower strategy can use it, from its own thread.

`send_and_receive` sends the work at once and returns an iterator that yields each reply as it arrives. Closing the
iterator cancels the work that is still open.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Self, TypeVar

from flwr.app import Error, Message

from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig
from fednc.common.errors import ProtocolError
from fednc.common.tasks import discovery
from fednc.common.waiting import Deadline, wait_until
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.protos import federation_pb2 as pb
from fednc.server.link import malloc
from fednc.server.link.assignments import REPLY_REJECTED, Batch, Content, Reply, Work
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node, NodeState
from fednc.server.link.reply_schema import ReplySchema

T = TypeVar("T")
_DECLARED_POLL_S = 0.01


class LinkGrid(flower_adapter.SeriesGrid):
    """The grid of one run. Its methods block and must not be called on the event loop."""

    def __init__(self, federation: Federation, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(federation.run_id)
        self.federation = federation
        self._loop = loop
        self._ordinals: Counter[tuple[str, str, int]] = Counter()
        self._pushed: dict[str, ReplyStream] = {}

    def begin_run(self, run_id: str, run: RunConfig) -> None:
        """Go on to the next run; returns when the nodes have declared again, or `rejoin_s` has passed."""
        roster = self.federation.roster
        schema = ReplySchema.of_declarations(discovery.get(run))
        self.call(lambda: self.federation.begin_run(run_id, run, schema))
        self.enter(run_id)
        self._ordinals.clear()

        def all_declared() -> bool:
            return not any(node.state is NodeState.PREPARING for node in roster.nodes())

        wait_until(lambda: self.call(all_declared), Deadline(run.rounds.rejoin_s), _DECLARED_POLL_S)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function()` on the event loop and return its result."""
        done: Future[T] = Future()

        def step() -> None:
            try:
                done.set_result(function())
            except BaseException as e:
                done.set_exception(e)

        self._loop.call_soon_threadsafe(step)
        return done.result()

    def tell(self, function: Callable[[], object]) -> None:
        """Run `function()` on the event loop soon. Does not wait: with a thousand replies, waits would add up."""
        self._loop.call_soon_threadsafe(function)

    def get_node_ids(self) -> list[int]:
        """Nodes that are ready, by name."""
        return [node.node_id for node in self.ready()]

    def ready(self) -> list[Node]:
        """Nodes that are ready, by name."""
        return self.call(self.federation.roster.ready)

    def reject(self, node: int, problem: str) -> None:
        """Count a reply that arrived intact but has content that no honest node sends."""
        self.call(lambda: self.federation.door.reject_reply(node, problem))

    def name_of(self, node: int) -> str:
        """The name of the node with a Flower node id."""
        found = self.federation.roster.by_id(node)
        return found.name if found else str(node)

    def traffic(self) -> tuple[int, int]:
        """Bytes up, bytes down so far, counted at the link."""
        return self.federation.traffic()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send without waiting. Pass the returned ids to `pull_messages` to get the replies."""
        ids = []
        for message in messages:
            replies = self._send([message])
            ids.append(replies.first_id)
            self._pushed[replies.first_id] = replies
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have arrived by now."""
        pulled = []
        for message_id in list(message_ids):
            replies = self._pushed.get(message_id)
            message = replies.poll() if replies else None
            if message is not None:
                self._pushed.pop(message_id).close()
                pulled.append(message)
        return pulled

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> ReplyStream:
        """Send the work now. The iterator yields replies as they arrive, for at most `timeout` seconds."""
        return self._send(list(messages), timeout)

    def _send(self, messages: list[Message], timeout_s: float | None = None) -> ReplyStream:
        batch = Batch()
        contents: dict[int, Content] = {}
        blobs: dict[bytes, Buffer] = {}
        for message in messages:
            content = message.content
            if id(content) not in contents:  # strategies send one content to all nodes
                contents[id(content)] = Content(records.to_manifest(content, with_digests=True))
                blobs.update({records.digest_of(a): a.data for a in records.arrays_of(content)})
            batch.works.append(self._work(message, contents[id(content)], batch))
        self.call(lambda: self.federation.dispatch(batch, blobs))
        return ReplyStream(self, batch, timeout_s)

    def _work(self, message: Message, content: Content, batch: Batch) -> Work:
        meta = message.metadata
        node = self.federation.roster.by_id(meta.dst_node_id)
        if node is None:
            raise ValueError(
                f"there is no node {meta.dst_node_id}; send only to nodes that get_node_ids() returns"
            )
        slot = (meta.group_id, meta.message_type, meta.dst_node_id)
        work_id = pb.AssignmentId(
            run_id=self.federation.run_id,
            group_id=meta.group_id,
            message_type=meta.message_type,
            node_id=meta.dst_node_id,
            ordinal=self._ordinals[slot],
            attempt=self.federation.attempt,
        )
        self._ordinals[slot] += 1
        return Work(work_id, node, message, content, batch)


class ReplyStream(Iterator[Message]):
    """Replies in order of arrival. Ends when all have arrived, at the deadline, or when closed."""

    def __init__(self, grid: LinkGrid, batch: Batch, timeout_s: float | None) -> None:
        self._grid, self._batch = grid, batch
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._open = len(batch.works)
        self._closed = False

    @property
    def first_id(self) -> str:
        """An id for `pull_messages`."""
        work = self._batch.works[0].id
        return f"{work.group_id}/{work.message_type}/{work.node_id}/{work.ordinal}"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        if self._open == 0:
            self.close("all replies have arrived")
            raise StopIteration
        wait_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            reply = self._batch.replies.get(timeout=wait_s)
        except queue.Empty:
            self.close("the round's deadline has passed")
            raise StopIteration from None
        return self._receive(reply)

    def poll(self) -> Message | None:
        """The next reply if one has arrived."""
        try:
            return self._receive(self._batch.replies.get_nowait())
        except queue.Empty:
            return None

    def _receive(self, reply: Reply) -> Message:
        self._open -= 1
        try:
            return self._to_message(reply)
        except ProtocolError as e:
            problem = str(e)
            self._grid.reject(reply.work.node.node_id, problem)
            return flower_adapter.reply(reply.work.instruction, None, Error(REPLY_REJECTED, problem))

    def _to_message(self, reply: Reply) -> Message:
        if reply.failure is not None:
            error = Error(reply.failure.code, f"{reply.failure.kind}: {reply.failure.reason}")
            return flower_adapter.reply(reply.work.instruction, None, error)
        assert reply.slot.upload is not None
        assert reply.manifest is not None
        views = reply.slot.upload.take([meta.size for meta in records.metas_of(reply.manifest)])
        self._grid.tell(lambda: self._grid.federation.intake.suspend(reply.slot))
        content = records.from_manifest(reply.manifest, iter(views))
        return flower_adapter.reply(reply.work.instruction, content, None)

    def close(self, reason: str = "the strategy needs no more replies") -> None:
        """Cancel work that is still open and free everything."""
        if self._closed:
            return
        self._closed, self._open = True, 0
        federation = self._grid.federation
        self._grid.call(lambda: federation.close(self._batch, reason))
        while not self._batch.replies.empty():
            slot = self._batch.replies.get().slot
            self._grid.call(lambda slot=slot: federation.intake.drop(slot))  # type: ignore[misc]
        malloc.return_free_memory()
