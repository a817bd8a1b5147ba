"""Checks the caller's identity before every call of every service.

It is an interceptor rather than a line in each method, so methods and services added later are guarded too. The
decision itself is made in `identity.py`, from the headers alone. Messages are read and decoded here, after that
check: gRPC itself would decode them first, for any caller, and log a traceback if that fails.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from fednc.common.security.credentials import Role
from fednc.server.access.identity import INVALID, Authenticator, Caller, Identity, Refusal
from fednc.server.access.open_calls import OpenCalls
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import CallRefused

# The caller of the call in progress. Unset outside the interceptor, so a service that bypasses it fails.
CALLER: ContextVar[Identity] = ContextVar("fednc_caller")

Context = grpc.aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]
_QUIET_S = 10.0  # between two log lines about one peer
_ABORT_S = 1.0  # for a refused caller to read its status
_PEERS = 1024  # remembered for that; with more peers than this there are only more log lines


class Gate(grpc.aio.ServerInterceptor):
    """Lets callers use the services for their role: `node_services` are for nodes, all others for operators."""

    def __init__(
        self,
        authenticator: Authenticator,
        events: EventLog,
        calls: OpenCalls,
        node_services: tuple[str, ...],
        note_undecodable: Callable[[Identity, str], None] = lambda _caller, _method: None,
    ) -> None:
        """`calls` records every accepted call and every refusal.

        `note_undecodable(caller, method)` is called for a message that cannot be decoded.
        """
        self.authenticator = authenticator
        self._calls, self._node_services = calls, node_services
        self._note_undecodable = note_undecodable
        self._refusals = _RefusalLog(events)

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of this call, wrapped in the check."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        service, name = method.split("/")[1:]
        role = Role.NODE if service in self._node_services else Role.OPERATOR
        # Always a stream on the request side: gRPC reads a unary request before the interceptor can check.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._guard_stream(handler, method, name, role), None, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._guard_unary(handler, method, name, role), None, handler.response_serializer
        )

    def _guard_unary(self, handler: Any, method: str, name: str, role: Role) -> Any:
        behaviour = getattr(handler, _kind(handler))

        async def guarded(messages: AsyncIterator[bytes], context: Context) -> Any:
            try:
                with self._entered(context, role):
                    return await behaviour(await self._request(handler, messages, context, name), context)
            except Refusal as refusal:
                await self._turn_away(context, method, refusal)

        return guarded

    def _guard_stream(self, handler: Any, method: str, name: str, role: Role) -> Any:
        behaviour = getattr(handler, _kind(handler))

        async def guarded(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            try:
                with self._entered(context, role):
                    request = await self._request(handler, messages, context, name)
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response
            except Refusal as refusal:
                await self._turn_away(context, method, refusal)

        return guarded

    @contextmanager
    def _entered(self, context: Context, role: Role) -> Iterator[None]:
        """Accept the call while the block runs. Raises Refusal, at once or when the identity becomes invalid."""
        identity = self.authenticator.authenticate(_caller(context))
        identity.require_role(role)
        with self._calls.opened(identity, context.peer()):
            CALLER.set(identity)
            yield

    async def _request(self, handler: Any, messages: AsyncIterator[bytes], context: Context, name: str) -> Any:
        """The handler's argument: one message, or an iterator over all. Raises Refusal."""
        decode: Decode = handler.request_deserializer
        if handler.request_streaming:
            return self._decoded(messages, decode, name)
        message = await context.read()
        if message is grpc.aio.EOF:
            raise Refusal(f"the call ended without a message; {name} needs one", INVALID)
        return self._decode(message, decode, name)

    async def _decoded(self, messages: AsyncIterator[bytes], decode: Decode, name: str) -> AsyncIterator[Any]:
        async for message in messages:
            yield self._decode(message, decode, name)

    def _decode(self, message: bytes, decode: Decode, name: str) -> Any:
        try:
            return decode(message)
        except DecodeError:
            self._note_undecodable(CALLER.get(), name)
            raise Refusal(f"{len(message)} bytes that are not a message of {name}", INVALID) from None

    async def _turn_away(self, context: Context, method: str, refusal: Refusal) -> None:
        self._calls.refused[refusal.status.name] += 1
        self._refusals.note(context.peer(), method, refusal)
        try:
            async with asyncio.timeout(_ABORT_S):
                await context.abort(refusal.status, refusal.reason)
        except TimeoutError:  # the caller reads nothing, so gRPC cannot send the status after data in flight
            raise asyncio.CancelledError from None


class _RefusalLog:
    """One event per peer and quiet period, so a client that keeps trying cannot fill the disk."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()  # peer: when last logged, how many since

    def note(self, peer: str, method: str, refusal: Refusal) -> None:
        host, now = unquote(peer).rpartition(":")[0], time.monotonic()
        logged_at, unsaid = self._seen.pop(host, (-_QUIET_S, 0))
        if now - logged_at < _QUIET_S:
            self._seen[host] = (logged_at, unsaid + 1)
            return
        self._seen[host] = (now, 0)
        if len(self._seen) > _PEERS:
            self._seen.popitem(last=False)
        more = f" ({unsaid} earlier refusals not logged)" if unsaid else ""
        self._events.emit(
            CallRefused(
                text=f"refused {host}: {refusal.reason}{more}",
                peer=unquote(peer),
                reason=refusal.reason,
                status=refusal.status.name,
                method=method,
                unsaid=unsaid,
            )
        )


def _kind(handler: Any) -> str:
    streaming = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if each else "unary" for each in streaming)


def _caller(context: Context) -> Caller:
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    authorization = dict(context.invocation_metadata() or ()).get("authorization", "")
    return Caller(context.peer(), pem, str(authorization))
