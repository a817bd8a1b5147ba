"""The gRPC face of the federation: ties calls to nodes, moves bytes, maps errors to status codes.

Thin on purpose; every decision is in `federation.py`, and who is calling was settled by `gate.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from fednc.common import bulk, faults, records
from fednc.common.bulk import Data
from fednc.common.errors import ProtocolError, RefusedError
from fednc.common.wire import BEATS, BULK_FACTOR, PROTOCOL, SESSION_KEY
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server import limits, outflow
from fednc.server.federation import Federation
from fednc.server.gate import CALLER
from fednc.server.identity import Refusal
from fednc.server.intake import SupersededError
from fednc.server.limits import InvalidError, require
from fednc.server.roster import Node, Outbox
from fednc.server.spool import SpooledUpload
from fednc.server.window import Allowance, Window
from fednc.server.work import Work

_CALLS_PER_NODE = 16  # at once, the attending one left out
_PROGRESS_PAUSE_S = 0.02
_EARLY_S = 0.005  # for what a client sent ahead of its grant, and gRPC holds, to show
_GONE = "a blob is gone: the work it belonged to is over"
_NOTHING: tuple[bytes, ...] = ()
_COMMITTED = pb.Receipt(outcome=pb.Receipt.COMMITTED)
_BROKEN_OFF = pb.Receipt(outcome=pb.Receipt.DAMAGED, reason="stopped before its end; go on from where you were")
_LATE = pb.Receipt(outcome=pb.Receipt.LATE, reason="the work was cancelled or taken over")

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Frames = AsyncIterator[pb.UploadFrame | Data]


class FederationServicer(rpc.FederationServicer):
    """Serves one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        budget_bytes = federation.intake.budget.total_bytes
        run = federation.run
        nodes = max(run.rounds.min_clients, run.split.parts if run.split else 0)
        self._downward, self._upward = Window(budget_bytes), Window(budget_bytes, nodes)
        self.http2_options = self._upward.http2_options
        self._stall_s = BULK_FACTOR * run.server.liveness_s

    async def Attend(self, request: pb.AttendRequest, context: Context) -> AsyncIterator[pb.ServerEvent]:
        """See federation.proto."""
        faults.at("server.attend")
        node = await self._admit(request, context)
        session, outbox = node.session, node.outbox
        try:
            while True:
                event = await self._next_event(outbox)
                if event is None:
                    return
                if isinstance(event, Refusal):
                    raise event
                yield event
                if event.HasField("run_over"):
                    return
        finally:
            self._federation.depart(node, session)

    async def _next_event(self, outbox: Outbox) -> pb.ServerEvent | Refusal | None:
        """What the node is told next; where there is nothing to tell, that we are alive."""
        try:
            async with asyncio.timeout(self._federation.run.server.liveness_s / BEATS):
                return await outbox.get()
        except TimeoutError:
            return pb.ServerEvent()

    async def _admit(self, request: pb.AttendRequest, context: Context) -> Node:
        if request.protocol != PROTOCOL:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the server speaks protocol {PROTOCOL}, this client {request.protocol} "
                f"(fednc {request.software:.40}); install the same version of fednc on both sides",
            )
        try:
            limits.check_attend(request)
        except InvalidError as e:  # not counted against the name: nobody has proved yet whose it is
            self._federation.door.refusals[f"Attend.{e.field}"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        CALLER.get().require_name(request.name)
        try:
            node = self._federation.admit(request)
        except RefusedError as e:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(e))
        node.identity = CALLER.get()
        return node

    async def _node(self, context: Context) -> Node:
        session = dict(context.invocation_metadata() or ()).get(SESSION_KEY, b"")
        node = self._federation.roster.by_session(session if isinstance(session, bytes) else session.encode())
        if node is None:
            await context.abort(grpc.StatusCode.ABORTED, "unknown session; attend first")
        CALLER.get().require_name(node.name)
        node.touch()
        return node

    @asynccontextmanager
    async def _call(self, context: Context, name: str) -> AsyncIterator[Node]:
        """The node that makes a call other than Attend; what it must not say ends the call and is counted."""
        node = await self._node(context)
        if node.calls >= _CALLS_PER_NODE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{node.calls} calls at once; end some first")
        node.calls += 1
        try:
            yield node
        except InvalidError as e:
            self._federation.door.turn_down(node, name, e)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            node.calls -= 1

    async def Declare(self, request: pb.Declaration, context: Context) -> pb.DeclarationReceipt:
        """See federation.proto."""
        async with self._call(context, "Declare") as node:
            agreement = self._federation.agreement
            limits.check_declaration(request, agreement.label_space if agreement else None)
            node.declarations += 1
            most = limits.DECLARATIONS
            require("standing", node.declarations <= most, f"declared {most} times in one session")
            self._federation.declare(node, request)
        return pb.DeclarationReceipt()

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        """See federation.proto."""
        async with self._call(context, "Download") as node:
            session, get = node.session, self._federation.blobs.get
            limits.check_download(request)
            blobs = [blob for blob in map(get, request.digests) if blob is not None]
            if len(blobs) < len(request.digests):
                await context.abort(grpc.StatusCode.NOT_FOUND, _GONE)
            going = outflow.send(
                blobs, self._downward, context.write, stall_s=self._stall_s,
                is_wanted=lambda: node.session == session and None not in map(get, request.digests),
            )  # fmt: skip
            left = sum(map(len, blobs))
            del blobs  # a model whose round is over must not be held for one who reads nothing
            with self._downward.transfer():
                async for size in going:
                    node.bytes_down, left = node.bytes_down + size, left - size
            if node.session != session:
                await context.abort(grpc.StatusCode.ABORTED, "the session that asked for this is over")
            if left:
                await context.abort(grpc.StatusCode.NOT_FOUND, _GONE)
        for each in _NOTHING:  # makes it a generator, as streams are to the gate
            yield each

    async def Upload(self, frames: Frames, context: Context) -> AsyncIterator[pb.UploadEvent]:
        """See federation.proto."""
        async with self._call(context, "Upload") as node:
            first = await self._next(frames, context)
            if first is None:
                return  # nothing was said: the connection broke
            header = first.header if isinstance(first, pb.UploadFrame) and first.HasField("header") else None
            require("header", header is not None, "an upload starts with its header")
            assert header is not None
            limits.check_id(header.id, node.node_id)
            async for event in self._serve_upload(node, header, frames, context):
                yield event

    async def _serve_upload(
        self, node: Node, header: pb.UploadHeader, frames: Frames, context: Context
    ) -> AsyncIterator[pb.UploadEvent]:
        work = self._federation.find_work(node, header.id)
        if isinstance(work, pb.Receipt):
            yield pb.UploadEvent(receipt=work)
            return
        call: object = None
        try:
            self._federation.check_header(work, header)
            if header.HasField("failure"):
                self._federation.report_failure(work, header.failure)
                yield pb.UploadEvent(receipt=_COMMITTED)
                return
            size = records.bulk_bytes(header.manifest)
            call, upload = await self._federation.intake.open(work.slot, header.upload_id, size)
            with self._upward.transfer():
                receipt = await self._receive(work, call, upload, header, frames, context)
        except SupersededError:
            receipt = _LATE
        except ProtocolError as e:
            receipt = self._federation.reject(work, e)
        except OSError as e:
            self._federation.note_full_disk(work, e)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the server cannot store the upload: {e.strerror}")
        finally:
            if call:
                self._federation.intake.suspend(work.slot, call)
        yield pb.UploadEvent(receipt=receipt)

    async def _receive(
        self, work: Work, call: object, upload: SpooledUpload, header: pb.UploadHeader, frames: Frames,
        context: Context,
    ) -> pb.Receipt:  # fmt: skip
        frame_bytes = self._upward.piece_bytes(self._federation.roster.attending)
        allowance = Allowance(self._upward, upload.size, frame_bytes)
        while True:
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
            upload.append(faults.through("server.upload", frame))
            work.node.bytes_up += len(frame)

    async def _grant(
        self, allowance: Allowance, received: int, frames: Frames, context: Context
    ) -> pb.UploadFrame | Data | None:
        """Let the client go on, and what it sends next."""
        grant = pb.UploadEvent(grant=pb.Grant(offset=received, until=allowance.until, frame=allowance.frame_bytes))
        if not allowance.ends_test:
            await self._within_patience(context.write(grant), context)
            return await self._next(frames, context)
        reading = asyncio.ensure_future(self._next(frames, context))
        try:
            await asyncio.wait([reading], timeout=_EARLY_S)
            early = reading.done() and not reading.exception() and reading.result() is not None
            require("grant", not early, f"data went on after byte {received} before it was granted")
            await context.write(grant)
            return await reading
        finally:
            reading.cancel()

    async def _next(self, frames: Frames, context: Context) -> pb.UploadFrame | Data | None:
        """The next frame, None at the end."""
        return await self._within_patience(anext(frames, None), context)

    async def _within_patience(self, step: Awaitable[T], context: Context) -> T:
        """A client that neither sends nor reads for long gives its place to others."""
        try:
            async with asyncio.timeout(self._stall_s):
                return await step
        except TimeoutError:
            reason = f"no byte for {self._stall_s:g} s; go on from where you were"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)

    def _finish(self, work: Work, upload: SpooledUpload, header: pb.UploadHeader, digest: bytes) -> pb.Receipt:
        if not upload.is_intact(digest):
            return self._federation.drop_damaged(work)
        self._federation.commit(work, header.manifest)
        faults.at("server.committed")
        return _COMMITTED

    async def Report(self, progress: AsyncIterator[pb.Progress], context: Context) -> pb.ReportSummary:
        """See federation.proto."""
        received = 0
        async with self._call(context, "Report") as node:
            session = node.session
            async for message in progress:
                if node.session != session:
                    break
                node.touch()
                if message.HasField("id"):  # else a sign of life
                    limits.check_progress(message, node.node_id)
                    if self._federation.has_work(message.id):
                        node.progress = message
                received += 1
                await asyncio.sleep(_PROGRESS_PAUSE_S)  # what comes faster waits in the client
        return pb.ReportSummary(received=received)


def add_to(server: grpc.aio.Server, servicer: FederationServicer) -> None:
    """What the generated code does, and before it the two calls of bulk data, which skip protobuf's copies."""
    calls: dict[str, Any] = {
        "Download": grpc.unary_stream_rpc_method_handler(servicer.Download, pb.DownloadRequest.FromString, None),
        "Upload": grpc.stream_stream_rpc_method_handler(
            servicer.Upload, bulk.unpack_frame, pb.UploadEvent.SerializeToString
        ),
    }
    service = pb.DESCRIPTOR.services_by_name["Federation"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, calls),))
    rpc.add_FederationServicer_to_server(servicer, server)
    server.add_registered_method_handlers(service, calls)  # from some gRPC after 1.81 on these win, not the first
