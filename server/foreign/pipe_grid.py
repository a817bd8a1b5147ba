"""The grid that a foreign ServerApp sees: every call goes over the pipe to the server's process.

Used only in the app's process. Any thread of the app may call: calls take turns and are short. A thread that waits
for replies sleeps until the server rings the bell (writes a byte to a pipe).
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Error, Message, RecordDict

from fednc.common import flower_adapter
from fednc.common.errors import ProtocolError
from fednc.common.process.app_pipe import Pipe
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb

_MAX_SLEEP_S = 0.5  # after which a waiting thread looks for replies itself
_READ_BYTES = 1 << 16


class PipeGrid(flower_adapter.RunGrid):
    """The grid of one run."""

    def __init__(self, run_id: str, pipe: Pipe, bell: int) -> None:
        super().__init__(run_id)
        self._pipe, self._bell = pipe, bell
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._arrived: set[str] = set()  # ids of arrived replies that a thread waits for
        self._waited_for: set[str] = set()
        self._is_listening = False  # a thread waits for the bell

    def say(self, call: dict[str, Any]) -> None:
        """Send the server a message that it does not answer."""
        with self._turn:
            self._pipe.send_json(call)

    def _ask(self, call: dict[str, Any]) -> Any:
        with self._turn:
            self._pipe.send_json(call)
            return self._pipe.receive_json()

    # ---- what Flower asks of a grid ------------------------------------------------------------------------

    def get_node_ids(self) -> list[int]:
        """Nodes that are ready, by name."""
        return [node_id for node_id, *_ in self._ask({"call": "nodes"})]

    def get_nodes(self) -> list[Any]:
        """Nodes that are ready, with their names and, if they have certificates, their public keys."""
        nodes = self._ask({"call": "nodes"})
        return [flower_adapter.node_info(node_id, name, key.encode()) for node_id, name, key in nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send without waiting; each message gets the id that its reply will name.

        Raises:
            ContentError: a message contains something that cannot be sent; none was sent.
        """
        return self._push(list(messages), is_awaited=False)

    def _push(self, messages: list[Message], *, is_awaited: bool) -> list[str]:
        parcel = _PipeParcel(messages)
        parcel.call["waits"] = is_awaited
        with self._turn:
            self._pipe.send_json(parcel.call)
            for data in (*parcel.manifests, *parcel.blobs.values()):
                self._pipe.send(data)
            ids: list[str] = self._pipe.receive_json()
        for message, message_id in zip(messages, ids, strict=True):
            flower_adapter.stamp(message, message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have arrived by now."""
        with self._turn:
            self._pipe.send_json({"call": "pull", "ids": list(message_ids)})
            pulled = [self._receive(head) for head in iter(self._pipe.receive_json, {})]
        for message, problem in pulled:
            if problem:
                self._ask({"call": "reject", "node": message.metadata.src_node_id, "problem": problem})
        return [message for message, _ in pulled]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies that arrive within `timeout` seconds. The other nodes are told to stop.

        Sorted by node, not by arrival, so that a strategy that adds floats gives the same bits every time.
        """
        ids = self._push(list(messages), is_awaited=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        left, replies = set(ids), list[Message]()
        with self._changed:
            self._waited_for |= left
        replies += self.pull_messages(ids)  # those that arrived before we began to wait
        left -= {reply.metadata.reply_to_message_id for reply in replies}
        try:
            while left:
                here = self._await(left, deadline)
                if not here:
                    break
                replies += self.pull_messages(sorted(here))
                left -= here
        finally:
            with self._changed:
                self._waited_for -= set(ids)
                self._arrived -= set(ids)
            if left:
                self._ask({"call": "close", "ids": sorted(left), "reason": "the round's deadline has passed"})
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    # ---- waiting -------------------------------------------------------------------------------------------

    def _await(self, ids: set[str], deadline: float | None) -> set[str]:
        """Wait until a reply to any of `ids` arrives; return the ids of those that have. Empty at the deadline."""
        while True:
            with self._changed:
                if here := ids & self._arrived:
                    return here
                left_s = _MAX_SLEEP_S if deadline is None else min(_MAX_SLEEP_S, deadline - time.monotonic())
                if left_s <= 0:
                    return set()
                if self._is_listening:
                    self._changed.wait(left_s)
                    continue
                self._is_listening = True
            self._listen(left_s)

    def _listen(self, timeout_s: float) -> None:
        """Wait for the bell on behalf of all waiting threads, and tell them what is new."""
        news: list[str] = []
        try:
            if select.select([self._bell], [], [], timeout_s)[0]:
                os.read(self._bell, _READ_BYTES)
                news = self._ask({"call": "news"})
        finally:
            with self._changed:
                self._arrived |= self._waited_for.intersection(news)
                self._is_listening = False
                self._changed.notify_all()

    # ---- replies -------------------------------------------------------------------------------------------

    def _receive(self, head: dict[str, Any]) -> tuple[Message, str]:
        """(a reply, what is wrong with its content)."""
        asked = flower_adapter.instruction(
            RecordDict(), run_id=self.run_id, dst=head["node"], message_type=head["type"], group_id=head["group"]
        )
        flower_adapter.stamp(asked, head["id"])
        content, error, problem = None, None, ""
        if "error" in head:
            code, reason = head["error"]
            error = Error(code, reason or None)
        else:
            manifest, left = pb.Manifest.FromString(self._pipe.receive()), _Frame(self._pipe)
            try:
                content = _content(manifest, left)
            except (ProtocolError, ValueError, TypeError) as e:
                problem = str(e)
                error = Error(flower_adapter.REPLY_REJECTED, problem)
            left.drain()
        reply = flower_adapter.reply(asked, content, error)
        flower_adapter.stamp(reply, f"{head['id']}/reply")
        return reply, problem


class _Frame:
    """The bytes of one frame, read in pieces."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._left = pipe, pipe.begin()

    def take(self, size: int) -> bytes:
        """Read `size` bytes. Raises ProtocolError if fewer are left."""
        if size > self._left:
            raise ProtocolError(f"the reply has only {self._left} bytes left, a part needs {size}")
        self._left -= size
        return self._pipe.read(size)

    def drain(self) -> None:
        """Skip the rest."""
        while self._left:
            self.take(min(self._left, _READ_BYTES))


def _content(manifest: pb.Manifest, frame: _Frame) -> RecordDict:
    """Decode the content of a reply. Raises ProtocolError."""
    if manifest.HasField("packed"):
        manifest = records.unpack(manifest, frame.take(manifest.packed.size))
    sizes: Iterator[int] = (meta.size for meta in records.metas_of(manifest))
    return records.from_manifest(manifest, (frame.take(size) for size in sizes))


class _PipeParcel:
    """Messages as they go over the pipe: each content and each blob once, for any number of messages."""

    def __init__(self, messages: list[Message]) -> None:
        """Raises ContentError."""
        self.manifests: list[bytes] = []
        self.blobs: dict[bytes, Buffer] = {}
        places: dict[int, int] = {}
        orders = []
        for message in messages:
            content, meta = message.content, message.metadata
            (meta.message_type + meta.group_id).encode()  # raises here rather than in the server
            if id(content) not in places:  # strategies send one content to all nodes
                places[id(content)] = len(self.manifests)
                self.manifests.append(self._pack(content))
            orders.append([meta.dst_node_id, meta.message_type, meta.group_id, places[id(content)]])
        digests = [digest.hex() for digest in self.blobs]
        self.call: dict[str, Any] = {
            "call": "push",
            "messages": orders,
            "contents": len(self.manifests),
            "blobs": digests,
        }

    def _pack(self, content: RecordDict) -> bytes:
        for array in records.arrays_of(content):
            if type(array.data) is not bytes:
                array.data = bytes(array.data)  # a copy, because the app may change its own in place
        manifest = records.to_manifest(content, with_digests=True)
        self.blobs |= {records.digest_of(array): array.data for array in records.arrays_of(content)}
        if manifest.ByteSize() > WHOLE_BYTES:
            manifest, data = records.pack(manifest, with_digest=True)
            self.blobs[manifest.packed.digest] = data
        return records.encode(manifest)
