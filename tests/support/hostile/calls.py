"""Calls of one node, one message or frame at a time, with bytes that no stub would send, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2 as op
from support.hostile.messages import OK
from support.hostile.replies import HostileReply

T = TypeVar("T")
Ending = tuple[pb.Receipt.Outcome | None, grpc.StatusCode, str]  # the last receipt's outcome, status, reason
AT_ONCE = 8
OVERTAKEN = "Internal error from Core"  # what gRPC's client reports if a receipt arrives during a write
CALL_S = 30.0
KINDS = {
    method.name: method
    for service in (pb, op)
    for s in service.DESCRIPTOR.services_by_name.values()
    for method in s.methods
}


@dataclass(frozen=True)
class Caller:
    """The caller: channel and credentials."""

    channel: grpc.aio.Channel
    metadata: Any = ()

    async def send(self, name: str, message: bytes) -> tuple[grpc.StatusCode, str]:
        """Send this message in the call `name`; return how it ends."""
        method, options = KINDS[name], {"metadata": self.metadata, "timeout": CALL_S}
        if method.client_streaming:
            call = self._stream(name)
            await _write(call, [message], ends=True)
        elif method.server_streaming:
            call = self.channel.unary_stream(_path(name))(message, **options)
            with suppress(grpc.aio.AioRpcError):
                if await call.read() is not grpc.aio.EOF:
                    call.cancel()
                    return OK, ""
        else:
            call = self.channel.unary_unary(_path(name))(message, **options)
        return await call.code(), await call.details()

    async def reply(self, reply: HostileReply, work_id: pb.AssignmentId) -> Ending:
        """How the upload ends."""
        if not reply.whole:
            return await self.upload(reply.to_frames(work_id), reply.times)
        for _ in range(reply.times):
            call = self.channel.unary_unary(_path("UploadWhole"))(
                reply.to_whole(work_id), metadata=self.metadata, timeout=CALL_S
            )
            code, details = await call.code(), await call.details()
        return pb.Receipt.FromString(await call).outcome if code is OK else None, code, details

    async def upload(self, frames: Sequence[bytes], times: int = 1) -> Ending:
        """The same frame by frame: the first one, then the others once they are granted."""
        outcome = None
        for _ in range(times):
            call = self._stream("Upload")
            await _write(call, frames[:1], ends=False)
            with suppress(grpc.aio.AioRpcError):
                while (event := await call.read()) is not grpc.aio.EOF:
                    event = pb.UploadEvent.FromString(event)
                    if event.HasField("grant"):
                        await _write(call, frames[1:], ends=True)
                    else:
                        outcome = event.receipt.outcome
            code, details = await call.code(), await call.details()
            if details == OVERTAKEN:
                code = OK
        return outcome, code, details

    def _stream(self, name: str) -> Any:
        kind = self.channel.stream_stream if KINDS[name].server_streaming else self.channel.stream_unary
        return kind(_path(name))(metadata=self.metadata, timeout=CALL_S)


async def together(act: Callable[[Any], Awaitable[T]], over: Sequence[Any]) -> list[T]:
    """Call `act` on each, a few at once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(each: Any) -> T:
        async with gate:
            return await act(each)

    return list(await asyncio.gather(*(one(each) for each in over)))


async def _write(call: Any, frames: Sequence[bytes], *, ends: bool) -> None:
    """Write as far as the server reads."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for frame in frames:
            await call.write(frame)
        if ends:
            await call.done_writing()


def _path(name: str) -> str:
    return f"/{KINDS[name].containing_service.full_name}/{name}"
