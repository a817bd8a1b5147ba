"""Stands before every call of every service: nobody gets further without an identity that holds.

An interceptor and not a line in each method, so that a method or service that is added later is guarded too.
Decides nothing itself: `identity.py` does. Messages are decoded here, behind the identity: gRPC itself would do it
before, for anybody, and answer what cannot be decoded with a traceback in the log.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from fednc.common.credentials import Role
from fednc.server.events import EventLog
from fednc.server.identity import GIBBERISH, Authenticator, Caller, Identity, Refusal

# Who makes the call that is being served. Unset outside the gate: a service without it fails.
CALLER: ContextVar[Identity] = ContextVar("fednc_caller")

Context = grpc.aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]
_QUIET_S = 10.0  # between two log lines about one peer
_PEERS = 1024  # remembered for that; more peers than this only cost more log lines


class Gate(grpc.aio.ServerInterceptor):
    """Lets callers through as the role that a service is for; `node_services` are for nodes, all others not."""

    def __init__(
        self,
        authenticator: Authenticator,
        events: EventLog,
        node_services: tuple[str, ...],
        note_gibberish: Callable[[Identity, str], None] = lambda _caller, _method: None,
    ) -> None:
        """`note_gibberish` is told of a caller, and of the method, whose message cannot be decoded."""
        self.authenticator = authenticator
        self._node_services = node_services
        self._note_gibberish = note_gibberish
        self._refusals = _RefusalLog(events)

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of this call, behind the gate."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        service, name = method.split("/")[1:]
        role = Role.NODE if service in self._node_services else Role.OPERATOR
        behaviour = self._decoding(handler, name)
        guard = self._guard_stream if handler.response_streaming else self._guard_unary
        return getattr(grpc, f"{_kind(handler)}_rpc_method_handler")(
            guard(behaviour, method, role), None, handler.response_serializer
        )

    def _decoding(self, handler: Any, name: str) -> Callable[..., Any]:
        """The handler's behaviour, for messages as they came."""
        behaviour, decode = getattr(handler, _kind(handler)), handler.request_deserializer
        if handler.request_streaming:
            return lambda messages, context: behaviour(self._decoded(messages, decode, name), context)
        return lambda message, context: behaviour(self._decode(message, decode, name), context)

    async def _decoded(self, messages: AsyncIterator[bytes], decode: Decode, name: str) -> AsyncIterator[Any]:
        async for message in messages:
            yield self._decode(message, decode, name)

    def _decode(self, message: bytes, decode: Decode, name: str) -> Any:
        try:
            return decode(message)
        except DecodeError:
            self._note_gibberish(CALLER.get(), name)
            raise Refusal(f"{len(message)} bytes that are no message of {name}", GIBBERISH) from None

    def _guard_unary(self, behaviour: Callable[..., Awaitable[Any]], method: str, role: Role) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                self._enter(context, role)
                return await behaviour(request, context)
            except Refusal as refusal:
                await self._turn_away(context, method, refusal)

        return guarded

    def _guard_stream(self, behaviour: Callable[..., Any], method: str, role: Role) -> Any:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                self._enter(context, role)
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except Refusal as refusal:
                await self._turn_away(context, method, refusal)

        return guarded

    def _enter(self, context: Context, role: Role) -> None:
        identity = self.authenticator.authenticate(_caller(context))
        identity.require_role(role)
        CALLER.set(identity)

    async def _turn_away(self, context: Context, method: str, refusal: Refusal) -> None:
        self._refusals.note(context.peer(), method, refusal)
        await context.abort(refusal.status, refusal.reason)


class _RefusalLog:
    """One event per peer and quiet period: a refused client that tries for ever must not fill the disk."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer: when last said, how many since

    def note(self, peer: str, method: str, refusal: Refusal) -> None:
        host, now = unquote(peer).rpartition(":")[0], time.monotonic()
        said, unsaid = self._seen.pop(host, (-_QUIET_S, 0))
        if now - said < _QUIET_S:
            self._seen[host] = (said, unsaid + 1)
            return
        self._seen[host] = (now, 0)
        if len(self._seen) > _PEERS:
            self._seen.popitem(last=False)
        more = f" ({unsaid} more from there before)" if unsaid else ""
        self._events.emit(
            "refused", f"refused {host}: {refusal.reason}{more}", level=logging.WARNING, peer=unquote(peer),
            reason=refusal.reason, status=refusal.status.name, method=method, unsaid=unsaid,
        )  # fmt: skip


def _kind(handler: Any) -> str:
    streaming = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if each else "unary" for each in streaming)


def _caller(context: Context) -> Caller:
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    authorization = dict(context.invocation_metadata() or ()).get("authorization", "")
    return Caller(context.peer(), pem, str(authorization))
