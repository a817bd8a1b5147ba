"""Replies that wait until a foreign app pulls them, which it may do late, or never.

One that the app is waiting for keeps its share of the uploads' budget: it is pulled soon. The others lie on the
disk without a share, so that an app that never pulls stops nobody. Their bytes and their number are bounded; the
oldest go first, and who asks for one of those is told. On the event loop.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fednc.common.flower_adapter import APP_ERROR
from fednc.common.wire import records
from fednc.protos import federation_pb2 as pb
from fednc.server.link.assignments import REPLY_REJECTED, Reply
from fednc.server.link.upload_budget import Intake

_MOST_REPLIES = 1 << 16


@dataclass(frozen=True)
class Sent:
    """A message that the app has sent, as far as its reply needs it."""

    id: str
    node: int
    message_type: str
    group_id: str


@dataclass(eq=False)
class Arrival:
    """A reply that is there, or why there is none."""

    sent: Sent
    reply: Reply | None = None
    failure: pb.Failure | None = None
    is_awaited: bool = False  # the app is waiting for it now

    @property
    def size(self) -> int:
        """Bytes that wait on the disk without a share of the budget."""
        if self.is_awaited:
            return 0
        return records.bulk_bytes(self.reply.manifest) if self.reply and self.reply.manifest else 0


class Mailbox:
    """The replies of one run that wait, oldest first."""

    def __init__(self, intake: Intake, most_bytes: int, on_drop: Callable[[str, int, int], None]) -> None:
        """`on_drop` is told the node's name, the bytes of the reply that is dropped, and the limit."""
        self._intake, self._most_bytes, self._on_drop = intake, most_bytes, on_drop
        self._waiting: OrderedDict[str, Arrival] = OrderedDict()
        self._bytes = 0
        self._news: deque[str] = deque(maxlen=_MOST_REPLIES)
        self.bell, self._clapper = os.pipe()  # has a byte in it when there is news
        os.set_blocking(self._clapper, False)
        self._is_open = True

    def put(self, arrival: Arrival) -> None:
        """Keep it; the oldest are dropped where too much waits."""
        if not self._is_open:
            return
        if arrival.reply and arrival.reply.slot.upload:
            if not arrival.is_awaited:
                self._intake.suspend(arrival.reply.slot)  # gives its share back
            arrival.reply.slot.upload.rest()
        self._waiting[arrival.sent.id] = arrival
        self._bytes += arrival.size
        self._news.append(arrival.sent.id)
        self._make_room(arrival)
        with suppress(OSError):  # full: then it rings anyhow
            os.write(self._clapper, b"\0")

    def take(self, message_id: str) -> Arrival | None:
        """The reply to a message if it is there. It is the caller's then."""
        arrival = self._waiting.pop(message_id, None)
        if arrival:
            self._bytes -= arrival.size
        return arrival

    def drop(self, message_id: str) -> None:
        """Nobody wants this reply."""
        if (arrival := self.take(message_id)) and arrival.reply:
            self._intake.drop(arrival.reply.slot)

    def news(self) -> list[str]:
        """Ids of messages whose replies have come since this was last asked."""
        found = list(self._news)
        self._news.clear()
        return found

    def close(self) -> None:
        """Nobody listens any more."""
        for message_id in list(self._waiting):
            self.drop(message_id)
        self._is_open = False
        os.close(self._clapper)
        os.close(self.bell)

    def _make_room(self, newest: Arrival) -> None:
        if self._bytes > self._most_bytes:
            for arrival in [each for each in self._waiting.values() if each.size]:
                if self._bytes <= self._most_bytes or arrival is newest:
                    break
                self._give_up(arrival)
        while len(self._waiting) > _MOST_REPLIES:
            self.drop(next(iter(self._waiting)))

    def _give_up(self, arrival: Arrival) -> None:
        assert arrival.reply is not None
        size, name = arrival.size, arrival.reply.work.node.name
        self._bytes -= size
        self._intake.drop(arrival.reply.slot)
        arrival.reply = None
        reason = f"this reply of {size} bytes waited too long: newer ones took its place before it was pulled"
        arrival.failure = pb.Failure(code=REPLY_REJECTED, kind=APP_ERROR, reason=reason)
        self._on_drop(name, size, self._most_bytes)
