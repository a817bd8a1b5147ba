"""Receives uploads: a reply arrives in granted pieces, or in one message if it is small, and is committed once.

Used by the servicer on the event loop. The federation decides what a reply may contain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from fednc.common import fault_injection
from fednc.common.errors import ProtocolError
from fednc.common.wire import records
from fednc.common.wire.framing import Data
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.link import message_limits
from fednc.server.link.assignments import Work
from fednc.server.link.federation import Federation
from fednc.server.link.flow_control import Allowance, Window
from fednc.server.link.message_limits import require
from fednc.server.link.nodes import Node
from fednc.server.link.upload_budget import SupersededError
from fednc.server.link.upload_pace import Pace
from fednc.server.link.upload_store import SpooledUpload

_PACE_STALLS, _TURN_STALLS = 2, 4  # times `stall_s`: the window for measuring the speed, a large upload's turn
_COMMITTED = pb.Receipt(outcome=pb.Receipt.COMMITTED)
_BROKEN_OFF = pb.Receipt(outcome=pb.Receipt.DAMAGED, reason="the upload stopped before its end; resume it")
_LATE = pb.Receipt(outcome=pb.Receipt.LATE, reason="the work was cancelled, or another call took over")

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Frames = AsyncIterator[pb.UploadFrame | Data]
Receive = Callable[[Work, object, SpooledUpload], Awaitable[pb.Receipt]]


class UploadReceiver:
    """The uploads of one federation."""

    def __init__(self, federation: Federation, window: Window, stall_s: float, nodes: int = 1) -> None:
        """A client that neither sends nor reads for `stall_s` loses its place. `nodes`: how many are expected."""
        self._federation, self._window, self._stall_s = federation, window, stall_s
        self._floor_bytes_s = 1024 * federation.run.server.upload_floor_kib_s
        self._node_share_bytes = federation.intake.budget.total_bytes // max(1, nodes)

    async def whole(self, node: Node, upload: pb.WholeUpload, context: Context) -> pb.Receipt:
        """Receive a reply in one message; return the receipt. Raises InvalidError."""
        header, data = pb.UploadHeader(), upload.data
        header.CopyFrom(upload.header)  # a reference into the message would keep all of it, with its data, alive
        require("header", upload.HasField("header"), "the upload has no header")
        require("data", len(data) <= WHOLE_BYTES, f"{len(data)} bytes at once, at most {WHOLE_BYTES} are allowed")

        async def receive(work: Work, _call: object, spooled: SpooledUpload) -> pb.Receipt:
            self._append(work, spooled, data[spooled.received :])
            return self._finish(work, spooled, header, upload.digest)

        return await self._settle(node, header, receive, context)

    async def stream(self, node: Node, frames: Frames, context: Context) -> pb.Receipt | None:
        """Receive a reply in frames; return the receipt, or None if no frame came. Raises InvalidError."""
        first = await self._next(frames, context)
        if first is None:
            return None  # the connection broke
        header = first.header if isinstance(first, pb.UploadFrame) and first.HasField("header") else None
        require("header", header is not None, "the upload does not start with a header")
        assert header is not None

        async def receive(work: Work, call: object, spooled: SpooledUpload) -> pb.Receipt:
            with self._window.transfer():
                return await self._receive(work, call, spooled, header, frames, context)

        return await self._settle(node, header, receive, context)

    async def _settle(self, node: Node, header: pb.UploadHeader, receive: Receive, context: Context) -> pb.Receipt:
        message_limits.check_id(header.id, node.node_id)
        work = self._federation.find_work(node, header.id)
        if isinstance(work, pb.Receipt):
            return work
        call: object = None
        try:
            self._federation.check_header(work, header)
            if header.HasField("failure"):
                self._federation.report_failure(work, header.failure)
                return _COMMITTED
            size = records.bulk_bytes(header.manifest)
            call, spooled = await self._federation.intake.open(work.slot, header.upload_id, size, node.name)
            return await receive(work, call, spooled)
        except SupersededError:
            return _LATE
        except ProtocolError as e:
            return self._federation.reject(work, e)
        except OSError as e:
            self._federation.note_full_disk(work, e)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the server cannot store the upload: {e.strerror}")
        finally:
            if call:
                self._federation.intake.suspend(work.slot, call)

    async def _receive(
        self,
        work: Work,
        call: object,
        upload: SpooledUpload,
        header: pb.UploadHeader,
        frames: Frames,
        context: Context,
    ) -> pb.Receipt:
        frame_bytes = self._window.piece_bytes(self._federation.roster.attending)
        allowance = Allowance(self._window, upload.size, frame_bytes)
        pace = Pace(self._floor_bytes_s, _PACE_STALLS * self._stall_s, _TURN_STALLS * self._stall_s)
        while True:
            await self._make_room(work, upload, pace, context)
            if allowance.extend(upload.received):
                frame = await self._grant(allowance, upload.received, frames, context)
            else:
                frame = await self._next(frames, context)
            if frame is None:
                return _BROKEN_OFF
            if work.slot.call is not call or work.slot.upload is None:
                return _LATE
            work.node.touch()
            if isinstance(frame, pb.UploadFrame):
                require("data", frame.HasField("end"), "a frame without data")
                return self._finish(work, work.slot.upload, header, frame.end.digest)
            require("data", len(frame) > 0, "a frame without data")
            allowance.check(upload.received, len(frame))
            self._append(work, upload, frame)

    async def _grant(
        self, allowance: Allowance, received: int, frames: Frames, context: Context
    ) -> pb.UploadFrame | Data | None:
        """Send a grant to the client; return the next frame."""
        grant = pb.UploadEvent(grant=pb.Grant(offset=received, until=allowance.until, frame=allowance.frame_bytes))
        await self._within_patience(context.write(grant), context)
        return await self._next(frames, context)

    async def _next(self, frames: Frames, context: Context) -> pb.UploadFrame | Data | None:
        """The next frame; None at the end."""
        return await self._within_patience(anext(frames, None), context)

    async def _within_patience(self, step: Awaitable[T], context: Context) -> T:
        """Await `step`; end the call if the client neither sends nor reads for `stall_s`."""
        try:
            async with asyncio.timeout(self._stall_s):
                return await step
        except TimeoutError:
            reason = f"no byte for {self._stall_s:g} s; resume the upload"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)

    async def _make_room(self, work: Work, upload: SpooledUpload, pace: Pace, context: Context) -> None:
        """End the call if the upload must give up its place to others. The received bytes stay."""
        pace.note(upload.received)
        if not self._federation.intake.budget.is_wanted:
            return
        if problem := pace.problem(is_large=upload.size > self._node_share_bytes):
            self._federation.note_put_back(work, problem)
            reason = f"others wait for their turn and {problem}; resume the upload later"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)

    def _append(self, work: Work, upload: SpooledUpload, data: Data) -> None:
        upload.append(fault_injection.through("server.upload", data))
        work.node.count_up(len(data))

    def _finish(self, work: Work, upload: SpooledUpload, header: pb.UploadHeader, digest: bytes) -> pb.Receipt:
        if not upload.is_intact(digest):
            return self._federation.drop_damaged(work)
        self._federation.commit(work, header.manifest)
        fault_injection.at("server.committed")
        return _COMMITTED
