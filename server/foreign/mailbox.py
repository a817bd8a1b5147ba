"""Keeps replies until a foreign app pulls them, which it may do late or never.

A reply that the app is waiting for keeps its share of the upload budget, because it is pulled soon. The others are
kept on disk without a share, so an app that never pulls does not block uploads. Their bytes and number are
limited: the oldest are dropped first, and an app that asks for a dropped one gets an error. Runs on the event
loop.
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
    """The parts of a sent message that its reply needs."""

    id: str
    node: int
    message_type: str
    group_id: str


@dataclass(eq=False)
class Arrival:
    """A reply that has arrived, or the reason why there is none."""

    sent: Sent
    reply: Reply | None = None
    failure: pb.Failure | None = None
    is_awaited: bool = False  # the app is waiting for it now

    @property
    def size(self) -> int:
        """Bytes on disk without a share of the budget."""
        if self.is_awaited:
            return 0
        return records.bulk_bytes(self.reply.manifest) if self.reply and self.reply.manifest else 0


class Mailbox:
    """The waiting replies of one run, oldest first."""

    def __init__(self, intake: Intake, most_bytes: int, on_drop: Callable[[str, int, int], None]) -> None:
        """`on_drop` is called with the node's name, the size of the dropped reply, and the limit."""
        self._intake, self._most_bytes, self._on_drop = intake, most_bytes, on_drop
        self._waiting: OrderedDict[str, Arrival] = OrderedDict()
        self._bytes = 0
        self._news: deque[str] = deque(maxlen=_MOST_REPLIES)
        self.bell, self._ring = os.pipe()  # readable when there is news
        os.set_blocking(self._ring, False)
        self._is_open = True

    def put(self, arrival: Arrival) -> None:
        """Keep a reply. Drops the oldest ones if there are too many."""
        if not self._is_open:
            return
        if arrival.reply and arrival.reply.slot.upload:
            if not arrival.is_awaited:
                self._intake.suspend(arrival.reply.slot)  # gives its share back
            arrival.reply.slot.upload.close_file()
        self._waiting[arrival.sent.id] = arrival
        self._bytes += arrival.size
        self._news.append(arrival.sent.id)
        self._make_room(arrival)
        with suppress(OSError):  # the pipe is full, so it is readable already
            os.write(self._ring, b"\0")

    def take(self, message_id: str) -> Arrival | None:
        """Remove and return the reply to a message; None if it has not arrived."""
        arrival = self._waiting.pop(message_id, None)
        if arrival:
            self._bytes -= arrival.size
        return arrival

    def drop(self, message_id: str) -> None:
        """Discard the reply to a message."""
        if (arrival := self.take(message_id)) and arrival.reply:
            self._intake.drop(arrival.reply.slot)

    def news(self) -> list[str]:
        """Ids of messages whose replies have arrived since the last call."""
        found = list(self._news)
        self._news.clear()
        return found

    def close(self) -> None:
        """Discard all replies and accept no more."""
        for message_id in list(self._waiting):
            self.drop(message_id)
        self._is_open = False
        os.close(self._ring)
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
        reason = f"this reply of {size} bytes was dropped for newer ones, because the app did not pull it in time"
        arrival.failure = pb.Failure(code=REPLY_REJECTED, kind=APP_ERROR, reason=reason)
        self._on_drop(name, size, self._most_bytes)
