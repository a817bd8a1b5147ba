"""The gRPC service of the federation: assigns calls to nodes, moves bytes, maps errors to status codes.

Thin on purpose: decisions are made in `federation.py`, and `server/access/interceptor.py` has checked the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from fednc.common import fault_injection
from fednc.common.errors import RefusedError
from fednc.common.wire import framing
from fednc.common.wire.protocol import ATTENDANCE_KEY, BEATS, BULK_FACTOR, PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server.access.compatible_versions import version_problem
from fednc.server.access.identity import Refusal
from fednc.server.access.interceptor import CALLER
from fednc.server.access.open_calls import CALL
from fednc.server.link import downloads, message_limits
from fednc.server.link.federation import Federation
from fednc.server.link.flow_control import Window
from fednc.server.link.message_limits import InvalidError, require
from fednc.server.link.nodes import Node, Outbox
from fednc.server.link.uploads import Frames, UploadReceiver

_CALLS_PER_NODE = 16  # at the same time, not counting Attend
_PROGRESS_PAUSE_S = 0.02
_GONE = "a blob no longer exists: the work it belonged to is over"
_NOTHING: tuple[bytes, ...] = ()

Context = grpc.aio.ServicerContext[Any, Any]
Event = pb.ServerEvent | framing.Parts


class FederationServicer(rpc.FederationServicer):
    """Serves one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        budget_bytes = federation.intake.budget.total_bytes
        run = federation.run
        nodes = max(run.rounds.min_clients, run.split.parts if run.split else 0)
        self._beat_s, self._stall_s = run.server.liveness_s / BEATS, BULK_FACTOR * run.server.liveness_s
        self._downward, upward = Window(budget_bytes), Window(budget_bytes)
        self._uploads = UploadReceiver(federation, upward, self._stall_s, nodes)
        self.http2_options = upward.http2_options

    async def Attend(self, request: pb.AttendRequest, context: Context) -> AsyncIterator[Event]:
        """See federation.proto."""
        fault_injection.at("server.attend")
        node = await self._admit(request, context)
        attendance, outbox = node.attendance, node.outbox
        try:
            while True:
                event = await self._next_event(node, outbox)
                if event is None:
                    return
                if isinstance(event, Refusal):
                    raise event
                yield event
                if isinstance(event, pb.ServerEvent) and event.HasField("run_over"):
                    return
        finally:
            self._federation.depart(node, attendance)

    async def _next_event(self, node: Node, outbox: Outbox) -> Event | Refusal | None:
        """The next event for the node; a heartbeat if there is none for a while."""
        beat = asyncio.get_running_loop().call_later(self._beat_s, outbox.put_nowait, pb.ServerEvent())
        try:
            event = await outbox.get()
        finally:
            beat.cancel()
        if not isinstance(event, pb.AssignmentId):
            return event
        return self._federation.assignment(event) if node.outbox is outbox else None

    async def _admit(self, request: pb.AttendRequest, context: Context) -> Node:
        if request.protocol != PROTOCOL:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the server speaks protocol {PROTOCOL}, this client {request.protocol} "
                f"(fednc {request.software:.40}); install the same version of fednc on both sides",
            )
        try:
            message_limits.check_attend(request)
        except InvalidError as e:  # not counted against the name, because the caller's right to it is unchecked
            self._federation.door.rejections[f"Attend.{e.field}"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        CALLER.get().require_name(request.name)
        if problem := version_problem(request, self._federation.run, self._federation.app):
            self._federation.door.turn_away(request.name, problem)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        CALL.get().act_for(request.name)
        try:
            node = self._federation.admit(request)
        except RefusedError as e:
            self._federation.door.turn_away(request.name, str(e))
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(e))
        node.identify(CALLER.get())
        return node

    async def _node(self, context: Context) -> Node:
        shown = dict(context.invocation_metadata() or ()).get(ATTENDANCE_KEY, b"")
        node = self._federation.roster.by_attendance(shown if isinstance(shown, bytes) else shown.encode())
        if node is None:
            await context.abort(grpc.StatusCode.ABORTED, "unknown attendance; attend first")
        CALLER.get().require_name(node.name)
        CALL.get().act_for(node.name)
        node.touch()
        return node

    @asynccontextmanager
    async def _call(self, context: Context, name: str) -> AsyncIterator[Node]:
        """The node that makes a call other than Attend. An invalid message ends the call and is counted."""
        node = await self._node(context)
        if node.calls >= _CALLS_PER_NODE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{node.calls} calls at once; end some first")
        node.begin_call()
        try:
            yield node
        except InvalidError as e:
            self._federation.door.reject_message(node, name, e)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            node.end_call()

    async def Declare(self, request: pb.Declaration, context: Context) -> pb.DeclarationReceipt:
        """See federation.proto."""
        async with self._call(context, "Declare") as node:
            schema, most = self._federation.schema, message_limits.DECLARATIONS
            # About the run before: this client has yet to hear of the next one, which has another schema.
            late = bool(request.run_id) and request.run_id != self._federation.run_id
            if not late:
                known = (schema.label_space, schema.members_per_example, schema.parts) if schema else (None,)
                message_limits.check_declaration(request, *known)
            require("standing", node.count_declaration() <= most, f"declared {most} times in one attendance")
            if late:
                return pb.DeclarationReceipt()
            self._federation.declare(node, request)
        return pb.DeclarationReceipt()

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        """See federation.proto."""
        async with self._call(context, "Download") as node:
            attendance, get = node.attendance, self._federation.blobs.get
            message_limits.check_download(request)
            blobs = [blob for blob in map(get, request.digests) if blob is not None]
            if len(blobs) < len(request.digests):
                await context.abort(grpc.StatusCode.NOT_FOUND, _GONE)
            going = downloads.send(
                blobs,
                self._downward,
                context.write,
                stall_s=self._stall_s,
                is_wanted=lambda: node.attendance == attendance and None not in map(get, request.digests),
            )
            left = sum(map(len, blobs))
            del blobs  # a client that does not read must not keep a model alive after its round is over
            with self._downward.transfer():
                async for size in going:
                    node.count_down(size)
                    left -= size
            if node.attendance != attendance:
                await context.abort(grpc.StatusCode.ABORTED, "the attendance that asked for this is over")
            if left:
                await context.abort(grpc.StatusCode.NOT_FOUND, _GONE)
        for each in _NOTHING:  # makes this an async generator, as the interceptor expects of streams
            yield each

    async def Upload(self, frames: Frames, context: Context) -> AsyncIterator[pb.UploadEvent]:
        """See federation.proto."""
        async with self._call(context, "Upload") as node:
            receipt = await self._uploads.stream(node, frames, context)
            if receipt is not None:
                yield pb.UploadEvent(receipt=receipt)

    async def UploadWhole(self, request: pb.WholeUpload, context: Context) -> pb.Receipt:
        """See federation.proto."""
        async with self._call(context, "UploadWhole") as node:
            return await self._uploads.whole(node, request, context)

    async def Report(self, progress: AsyncIterator[pb.Progress], context: Context) -> pb.ReportSummary:
        """See federation.proto."""
        async with self._call(context, "Report") as node:
            attendance, before = node.attendance, 0.0
            async for message in progress:
                if node.attendance != attendance:
                    break
                node.touch()
                if message.HasField("id"):  # else a heartbeat
                    message_limits.check_progress(message, node.node_id)
                    if self._federation.has_work(message.id):
                        node.report(message)
                if time.monotonic() - before < _PROGRESS_PAUSE_S:
                    await asyncio.sleep(_PROGRESS_PAUSE_S)  # slows down clients that send too often
                before = time.monotonic()
        return pb.ReportSummary()


def add_to(server: grpc.aio.Server, servicer: FederationServicer) -> None:
    """Register the service. Calls that carry data get handlers that avoid protobuf's copies, and come first."""
    calls: dict[str, Any] = {
        "Attend": grpc.unary_stream_rpc_method_handler(
            servicer.Attend, pb.AttendRequest.FromString, framing.pack_event
        ),
        "Download": grpc.unary_stream_rpc_method_handler(servicer.Download, pb.DownloadRequest.FromString, None),
        "Upload": grpc.stream_stream_rpc_method_handler(
            servicer.Upload, framing.unpack_frame, pb.UploadEvent.SerializeToString
        ),
    }
    service = pb.DESCRIPTOR.services_by_name["Federation"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, calls),))
    rpc.add_FederationServicer_to_server(servicer, server)
    server.add_registered_method_handlers(service, calls)  # newer gRPC uses these instead of the generic handlers
