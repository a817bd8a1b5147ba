"""All open calls by identity: limits their number, counts refusals, ends them when the identity becomes invalid.

Filled by the interceptor, so it covers every service, also those added later. Runs on the event loop. Knows
nothing about gRPC's handlers, only the tasks that serve them.
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

Owner = Holder | str  # the authenticated holder, else the peer's address (one connection)


@dataclass(eq=False)
class OpenCall:
    """One call in progress."""

    identity: Identity
    owner: Owner
    task: asyncio.Task[object]
    node: str = ""  # the name of the node that it acts for, if any
    ended: Refusal | None = None  # why the server ended it

    def act_for(self, node: str) -> None:
        """Note the name of the node that it acts for: it ends with the node's attendance."""
        self.node = node


# The call in progress. Unset outside the interceptor.
CALL: ContextVar[OpenCall] = ContextVar("fednc_call")


@dataclass
class OpenCalls:
    """The open calls of one server, and how many were refused."""

    refused: Counter[str] = field(default_factory=Counter)  # all refused calls, by status
    _by_owner: dict[Owner, set[OpenCall]] = field(default_factory=dict)

    @contextmanager
    def opened(self, identity: Identity, peer: str) -> Iterator[OpenCall]:
        """Register the call that this task serves while the block runs.

        Raises:
            Refusal: the identity has too many open calls, or it became invalid while the block ran.
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
        """End the calls of every identity that is no longer valid."""
        for calls in list(self._by_owner.values()):
            checked: dict[str, Refusal | None] = {}  # one holder may have several credentials
            for call in list(calls):
                serial = call.identity.serial
                if serial not in checked:
                    checked[serial] = _problem(authenticator, call.identity)
                if refusal := checked[serial]:
                    self._end(call, refusal)

    def end_node(self, name: str, refusal: Refusal) -> None:
        """End all calls that act for a node, except the one that this task serves."""
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
