"""Every call that is open, by the identity that makes it: ended when the identity ends, limited, counted.

Filled by the gate, so that it knows the calls of every service, also of services added later. Lives on the event
loop. Knows nothing of gRPC's handlers, only the tasks that serve them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from fednc.common.security.credentials import Holder, Role
from fednc.server.access.identity import TOO_MANY, Authenticator, Identity, Refusal

CALLS_PER_IDENTITY = 32  # a node has at most 16 calls, its attendance and a dry run; the rest is for reconnecting

Owner = Holder | str  # who proved to be somebody; else the peer's address: one connection


@dataclass(eq=False)
class OpenCall:
    """One call that is being served."""

    identity: Identity
    owner: Owner
    task: asyncio.Task[object]
    node: str = ""  # the name that it acts for, where there is one
    ended: Refusal | None = None  # why the server ended it


# The call that is being served. Unset outside the gate.
CALL: ContextVar[OpenCall] = ContextVar("fednc_call")


@dataclass
class OpenCalls:
    """The open calls of one server, and how many were refused."""

    refused: Counter[str] = field(default_factory=Counter)  # by status, all of them
    _by_owner: dict[Owner, set[OpenCall]] = field(default_factory=dict)

    @contextmanager
    def opened(self, identity: Identity, peer: str) -> Iterator[OpenCall]:
        """The call that this task serves is open while the block runs.

        Raises:
            Refusal: the identity has too many open, or it ended while the block ran.
        """
        owner = identity.holder or peer
        mine = self._by_owner.setdefault(owner, set())
        if len(mine) >= CALLS_PER_IDENTITY:
            raise Refusal(f"{len(mine)} calls of {owner} are open; end some first", TOO_MANY)
        task = asyncio.current_task()
        assert task is not None
        holder = identity.holder
        call = OpenCall(identity, owner, task, holder.name if holder and holder.role is Role.NODE else "")
        mine.add(call)
        CALL.set(call)
        try:
            yield call
        except asyncio.CancelledError:
            if call.ended is None:
                raise
            task.uncancel()
            raise call.ended from None
        finally:
            mine.discard(call)
            if not mine:
                self._by_owner.pop(owner, None)

    def end_invalid(self, authenticator: Authenticator) -> None:
        """End the calls of every identity that does not hold any more."""
        for calls in list(self._by_owner.values()):
            checked: dict[str, Refusal | None] = {}  # one holder may have several credentials
            for call in list(calls):
                serial = call.identity.serial
                if serial not in checked:
                    checked[serial] = _problem(authenticator, call.identity)
                if refusal := checked[serial]:
                    self._end(call, refusal)

    def end_node(self, name: str, refusal: Refusal) -> None:
        """End all calls that act for a node, but the one that this task serves."""
        for calls in list(self._by_owner.values()):
            for call in list(calls):
                if call.node == name:
                    self._end(call, refusal)

    def _end(self, call: OpenCall, refusal: Refusal) -> None:
        if call.ended is None and call.task is not asyncio.current_task():
            call.ended = refusal
            call.task.cancel()

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))


def _problem(authenticator: Authenticator, identity: Identity) -> Refusal | None:
    try:
        authenticator.check(identity)
    except Refusal as refusal:
        return refusal
    return None
