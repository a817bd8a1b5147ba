"""The gRPC face of the federation: ties calls to nodes, moves bytes, maps errors to status codes.

Thin on purpose; every decision is in `federation.py`, and who is calling was settled by `gate.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from fednc.common.errors import ProtocolError, RefusedError
from fednc.common.wire import CHUNK_BYTES, PROTOCOL, SESSION_KEY, chunks
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server.federation import Federation, Work
from fednc.server.gate import CALLER
from fednc.server.identity import Refusal
from fednc.server.roster import Node
from fednc.server.spool import SpooledUpload

Context = grpc.aio.ServicerContext[Any, Any]


class FederationServicer(rpc.FederationServicer):
    """Serves one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    async def Attend(self, request: pb.AttendRequest, context: Context) -> AsyncIterator[pb.ServerEvent]:
        """See federation.proto."""
        node = await self._admit(request, context)
        session, outbox = node.session, node.outbox
        try:
            while True:
                event = await outbox.get()
                if isinstance(event, Refusal):
                    raise event
                yield event
                node.touch()
                if event.HasField("run_over"):
                    return
        finally:
            self._federation.depart(node, session)

    async def _admit(self, request: pb.AttendRequest, context: Context) -> Node:
        if request.protocol != PROTOCOL:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the server speaks protocol {PROTOCOL}, this client {request.protocol} "
                f"(fednc {request.software}); install the same version of fednc on both sides",
            )
        if not request.name or len(request.name) > 64 or not request.name.isprintable():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a name has 1 to 64 printable characters")
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

    async def Declare(self, request: pb.Declaration, context: Context) -> pb.DeclarationReceipt:
        """See federation.proto."""
        self._federation.declare(await self._node(context), request)
        return pb.DeclarationReceipt()

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[pb.Chunk]:
        """See federation.proto."""
        node = await self._node(context)
        session = node.session
        blobs = [self._federation.blobs.get(digest) for digest in request.digests]
        if None in blobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "a blob is gone: the work it belonged to is over")
        for piece in chunks([blob for blob in blobs if blob is not None], CHUNK_BYTES):
            yield pb.Chunk(data=piece)
            node.bytes_down += len(piece)
            node.touch()
            if node.session != session:
                await context.abort(grpc.StatusCode.ABORTED, "the session that asked for this is over")

    async def Upload(
        self, frames: AsyncIterator[pb.UploadFrame], context: Context
    ) -> AsyncIterator[pb.UploadEvent]:
        """See federation.proto."""
        node = await self._node(context)
        first = await anext(frames, None)
        if first is None or not first.HasField("header"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload starts with its header")
        found = self._federation.find_work(node, first.header.id)
        if isinstance(found, pb.Receipt):
            yield pb.UploadEvent(receipt=found)
            return
        if first.header.HasField("failure"):
            self._federation.report_failure(found, first.header.failure)
            yield pb.UploadEvent(receipt=pb.Receipt(outcome=pb.Receipt.COMMITTED))
            return
        try:
            upload = await self._federation.open_upload(found, first.header)
            yield pb.UploadEvent(grant=pb.Grant(offset=upload.received))
            receipt = await self._receive(found, upload, first.header, frames)
        except ProtocolError as e:
            receipt = self._federation.reject(found, e)
        except OSError as e:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server cannot store the upload: {e.strerror}"
            )
        yield pb.UploadEvent(receipt=receipt)

    async def _receive(
        self, work: Work, upload: SpooledUpload, header: pb.UploadHeader, frames: AsyncIterator[pb.UploadFrame]
    ) -> pb.Receipt:
        async for frame in frames:
            if work.upload is not upload:
                return pb.Receipt(outcome=pb.Receipt.LATE, reason="the work was cancelled or taken over")
            work.node.touch()
            if frame.HasField("end"):
                return self._finish(work, upload, header, frame.end.crc32)
            upload.append(frame.data)
            work.node.bytes_up += len(frame.data)
        return pb.Receipt(outcome=pb.Receipt.DAMAGED, reason="stopped before its end; go on from where you were")

    def _finish(self, work: Work, upload: SpooledUpload, header: pb.UploadHeader, crc32: int) -> pb.Receipt:
        if not upload.is_intact(crc32):
            self._federation.drop_damaged(work)
            return pb.Receipt(outcome=pb.Receipt.DAMAGED, reason="checksum or length differ; send it again")
        self._federation.commit(work, header.manifest)
        return pb.Receipt(outcome=pb.Receipt.COMMITTED)

    async def Report(self, progress: AsyncIterator[pb.Progress], context: Context) -> pb.ReportSummary:
        """See federation.proto."""
        node, received = await self._node(context), 0
        session = node.session
        async for message in progress:
            if node.session != session:
                break
            node.progress = message
            node.touch()
            received += 1
        return pb.ReportSummary(received=received)
