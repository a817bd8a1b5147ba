"""The server's side of a foreign ServerApp: sends the app's messages and passes it the replies.

`AppGrid` works on the federation. `Desk` answers the calls of `server/foreign/process.py` one by one, in the
thread that otherwise runs the strategy. The content of replies is read in the app's process, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict

from fednc.common import flower_adapter
from fednc.common.errors import RunFailedError
from fednc.common.process.app_pipe import AppProcess
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.protos import federation_pb2 as pb
from fednc.server.foreign.federation import AppFederation
from fednc.server.foreign.mailbox import Arrival, Sent
from fednc.server.link import malloc
from fednc.server.link.assignments import MESSAGE_UNKNOWN, NODE_LOST, Batch, Content, Reply
from fednc.server.link.grid import LinkGrid
from fednc.server.link.nodes import Node

_LOOK_UP_S = 0.2


@dataclass(frozen=True)
class SentMessage:
    """One message that the app sends; `content` is the index of its content among those of the call."""

    node: int
    message_type: str
    group_id: str
    content: int


@dataclass(eq=False)
class _Push:
    """The messages of one call, and the ids of those without a reply so far."""

    is_awaited: bool  # the app waits for the replies and pulls them as they arrive
    batch: Batch
    left: set[str] = field(default_factory=set)


class AppGrid(LinkGrid):
    """The grid that the desk of a foreign app uses."""

    def __init__(self, federation: AppFederation, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(federation, loop)
        self.mailbox = federation.mailbox
        self._pushes: dict[str, _Push] = {}  # by message id, for messages without a reply so far

    def ready(self) -> list[Node]:
        """Nodes that are ready, by name. Raises RunFailedError if the run is over: apps would wait forever."""
        if self.federation.over:
            raise RunFailedError(f"the run was ended: {self.federation.over.reason}")
        return super().ready()

    def push(
        self,
        orders: Iterable[SentMessage],
        manifests: Iterable[pb.Manifest],
        blobs: dict[bytes, Buffer],
        is_awaited: bool,
    ) -> list[str]:
        """Send without waiting; return the id of each message. `is_awaited`: the app waits for the replies."""
        contents = [Content(manifest) for manifest in manifests]
        push = _Push(is_awaited, Batch(on_reply=self._take_reply))
        return self.call(lambda: self._push(push, orders, contents, blobs))

    def _push(
        self, push: _Push, orders: Iterable[SentMessage], contents: list[Content], blobs: dict[bytes, Buffer]
    ) -> list[str]:
        sent = []
        for order in orders:
            sent.append(message := self._number(order))
            if self.federation.roster.by_id(order.node):
                instruction = flower_adapter.instruction(
                    RecordDict(),
                    run_id=self.run_id,
                    dst=order.node,
                    message_type=order.message_type,
                    group_id=order.group_id,
                )
                push.batch.works.append(self._work(instruction, contents[order.content], push.batch))
                push.left.add(message.id)
                self._pushes[message.id] = push
            else:
                reason = f"there is no node {order.node}; send only to nodes that get_node_ids() returns"
                failure = pb.Failure(code=NODE_LOST, kind=flower_adapter.APP_ERROR, reason=reason)
                self.mailbox.put(Arrival(message, failure=failure))
        if push.batch.works:
            self.federation.dispatch(push.batch, blobs)
        return [message.id for message in sent]

    def _number(self, order: SentMessage) -> Sent:
        ordinal = self._ordinals[(order.group_id, order.message_type, order.node)]
        return _sent(order.node, order.message_type, order.group_id, ordinal)

    def _take_reply(self, reply: Reply) -> None:
        work = reply.work.id
        sent = _sent(work.node_id, work.message_type, work.group_id, work.ordinal)
        push = self._pushes.pop(sent.id, None)
        if push is None:
            self.federation.intake.drop(reply.slot)
            return
        push.left.discard(sent.id)
        whole = reply if reply.failure is None else None
        self.mailbox.put(Arrival(sent, whole, reply.failure, push.is_awaited))
        if not push.left:
            self.federation.close(push.batch, "all replies have arrived")

    def give_up(self, ids: Iterable[str], reason: str) -> None:
        """The app no longer waits for these messages: cancel open work, discard replies."""

        def step() -> None:
            for message_id in ids:
                self.mailbox.drop(message_id)
                push = self._pushes.pop(message_id, None)
                if push and push.batch.works:
                    self.federation.close(push.batch, reason)

        self.call(step)
        malloc.return_free_memory()

    def pull(self, message_id: str) -> Arrival | None:
        """The reply to a message, an error if no such message waits, or None if the reply has not arrived."""

        def step() -> Arrival | None:
            arrival = self.mailbox.take(message_id)
            if arrival is None and message_id not in self._pushes:
                reason = "no message with this id waits for a reply: it was pulled before, or never sent"
                failure = pb.Failure(code=MESSAGE_UNKNOWN, kind=flower_adapter.APP_ERROR, reason=reason)
                arrival = Arrival(Sent(message_id, flower_adapter.SERVER_NODE_ID, "system", ""), failure=failure)
            return arrival

        return self.call(step)

    @property
    def is_waiting(self) -> bool:
        """Whether any message has no reply so far."""
        return bool(self._pushes)

    def nodes(self) -> list[tuple[int, str, str]]:
        """Id, name and public key of each node that is ready."""
        return [(node.node_id, node.name, node.identity.public_key.decode()) for node in self.ready()]


def _sent(node: int, message_type: str, group_id: str, ordinal: int) -> Sent:
    return Sent(f"{group_id}/{message_type}/{node}/{ordinal}", node, message_type, group_id)


class Desk:
    """Answers the calls of the app's process until the app is done."""

    def __init__(self, grid: AppGrid, process: AppProcess) -> None:
        self._grid, self._pipe, self._process = grid, process.pipe, process
        self.has_ended = False  # the app has reported its end

    def serve(self) -> str:
        """Serve the app to its end; return the name of its model file, empty if it left none.

        Raises:
            RunFailedError: the app raised, its process ended, or the run was ended in the meantime.
        """
        try:
            while True:
                while not self._pipe.is_ready(_LOOK_UP_S):
                    self._check()
                call = self._pipe.receive_json()
                self.has_ended = call["call"] in ("done", "failed")
                if call["call"] == "done":
                    return str(call["model"])
                if call["call"] == "failed":
                    raise RunFailedError(f"the ServerApp raised {call['kind']}: {call['reason']}")
                getattr(self, f"_on_{call['call']}")(call)
        except (OSError, EOFError) as e:
            self._check()
            raise RunFailedError(
                f"the ServerApp's process {self._process.end()} before the app was done; "
                "see its output above, in this server's output"
            ) from e

    def _check(self) -> None:
        if self._grid.federation.over:
            raise RunFailedError(f"the run was ended: {self._grid.federation.over.reason}")

    def _on_nodes(self, _: Any) -> None:
        self._pipe.send_json(self._grid.nodes())

    def _on_push(self, call: Any) -> None:
        orders = [SentMessage(*order) for order in call["messages"]]
        manifests = [pb.Manifest.FromString(self._pipe.receive()) for _ in range(call["contents"])]
        blobs: dict[bytes, Buffer] = {bytes.fromhex(digest): self._pipe.receive() for digest in call["blobs"]}
        self._pipe.send_json(self._grid.push(orders, manifests, blobs, call["waits"]))

    def _on_news(self, _: Any) -> None:
        self._pipe.send_json(self._grid.call(self._grid.mailbox.news))

    def _on_pull(self, call: Any) -> None:
        for message_id in call["ids"]:
            if arrival := self._grid.pull(message_id):
                self._hand_over(arrival)
        self._pipe.send_json({})
        if not self._grid.is_waiting:
            malloc.return_free_memory()

    def _hand_over(self, arrival: Arrival) -> None:
        reply, failure = arrival.reply, arrival.failure
        data: list[memoryview] = []
        if reply:
            assert reply.manifest is not None
            assert reply.slot.upload is not None
            data = reply.slot.upload.take([records.bulk_bytes(reply.manifest)])
        head = {
            "id": arrival.sent.id,
            "node": arrival.sent.node,
            "type": arrival.sent.message_type,
            "group": arrival.sent.group_id,
        }
        if failure:
            own = failure.kind == flower_adapter.APP_ERROR
            head["error"] = [failure.code, failure.reason if own else f"{failure.kind}: {failure.reason}"]
        self._pipe.send_json(head)
        if reply and reply.manifest is not None:
            self._pipe.send(reply.manifest.SerializeToString())
            self._pipe.send(*data)
            self._grid.tell(lambda: self._grid.federation.intake.suspend(reply.slot))

    def _on_close(self, call: Any) -> None:
        self._grid.give_up(call["ids"], call["reason"])
        self._pipe.send_json({})

    def _on_reject(self, call: Any) -> None:
        self._grid.reject(call["node"], call["problem"])
        self._pipe.send_json({})
