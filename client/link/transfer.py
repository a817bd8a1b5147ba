"""Transfers for one assignment: download what did not come with it, upload the reply, resume after a break.

Used by the attendance and the worker. Knows nothing about apps or rounds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import grpc
from flwr.app import Message, RecordDict

from fednc.client.link.blob_cache import BlobCache
from fednc.common import fault_injection
from fednc.common.errors import ProtocolError
from fednc.common.flower_adapter import APP_ERROR
from fednc.common.wire import framing, records
from fednc.common.wire.arrays import Buffer, new_buffers
from fednc.common.wire.checksum import Fingerprint, fingerprint
from fednc.common.wire.framing import Data, Piece
from fednc.common.wire.protocol import CHUNK_BYTES, UPWARD_LIMIT_BYTES, WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc

_TRIES = 3
_DIGESTS = 1 << 14  # in one request; the server accepts a few times as many
_HEADER_BYTES = UPWARD_LIMIT_BYTES - WHOLE_BYTES - 1024  # the rest is for data and framing
_SMALL_BYTES = 256 << 10  # hashing it takes less time than a switch to a thread
Metadata = tuple[tuple[str, bytes], ...]
DownloadCall = grpc.aio.UnaryStreamCall[pb.DownloadRequest, Data]
UploadCall = grpc.aio.StreamStreamCall[pb.UploadFrame | Piece, pb.UploadEvent]


class Stub(rpc.FederationStub):
    """The generated stub, but its two calls that carry bulk data skip protobuf's copies."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]  # generated
        service = pb.DESCRIPTOR.services_by_name["Federation"].full_name
        self.Download = channel.unary_stream(
            f"/{service}/Download", pb.DownloadRequest.SerializeToString, framing.unpack_chunk
        )
        self.Upload = channel.stream_stream(f"/{service}/Upload", framing.pack_frame, pb.UploadEvent.FromString)


def take_along(blobs: Iterable[bytes], manifest: pb.Manifest, cache: BlobCache) -> None:
    """Put blobs that came with an assignment into the cache. A damaged one is ignored, and downloaded later."""
    wanted = {meta.digest for meta in records.metas_of(manifest)}
    for blob in blobs:
        data = _incoming(blob)
        if (digest := fingerprint(data)) in wanted:
            cache.add(digest, data)


async def fetch_content(
    stub: Stub,
    metadata: Metadata,
    manifest: pb.Manifest,
    cache: BlobCache,
    hear: Callable[[], None],
    admit: Callable[[int], None],
) -> RecordDict:
    """The content of an assignment, downloading only the blobs that the cache lacks.

    Args:
        hear: called for each chunk that arrives.
        admit: called with the number of bytes before they are downloaded; raises if there are too many.

    Raises:
        ProtocolError: bytes that do not match their digest.
    """

    async def fetch(sizes: dict[bytes, int]) -> None:
        lacking = cache.lacking(sizes)
        if lacking:
            admit(sum(sizes[digest] for digest in lacking))
        for start in range(0, len(lacking), _DIGESTS):
            wanted = {digest: sizes[digest] for digest in lacking[start : start + _DIGESTS]}
            call = stub.Download(pb.DownloadRequest(digests=list(wanted)), metadata=metadata)
            for digest, data in (await _receive(wanted, call, hear)).items():
                cache.add(digest, data)

    used: list[bytes] = []
    if manifest.HasField("packed"):
        packed = manifest.packed
        used.append(packed.digest)
        await fetch({packed.digest: packed.size})
        manifest = await asyncio.to_thread(records.unpack, manifest, cache[packed.digest])
    metas = list(records.metas_of(manifest))
    used += [meta.digest for meta in metas]
    await fetch({meta.digest: meta.size for meta in metas})
    buffers = iter([cache[meta.digest] for meta in metas])
    if len(used) > len(metas):  # it was packed, so the content may be large
        content = await asyncio.to_thread(records.from_manifest, manifest, buffers)
    else:
        content = records.from_manifest(manifest, buffers)
    cache.settle(used)
    return content


async def _receive(
    sizes: dict[bytes, int], call: DownloadCall, hear: Callable[[], None]
) -> dict[bytes, memoryview]:
    """The blobs of one download, by digest. Raises ProtocolError where one does not match."""
    buffers = dict(zip(sizes, new_buffers(sizes.values()), strict=True))
    filled, is_small = list(buffers.values()), sum(sizes.values()) <= _SMALL_BYTES
    await _fill(filled, call, hear)
    found = _fingerprints(filled) if is_small else await asyncio.to_thread(_fingerprints, filled)
    for digest, arrived in zip(buffers, found, strict=True):
        if digest != arrived:
            raise ProtocolError(f"a download of {len(buffers[digest])} bytes does not match its digest")
    return buffers


def _fingerprints(buffers: list[memoryview]) -> list[bytes]:
    return [fingerprint(buffer) for buffer in buffers]


async def _fill(targets: list[memoryview], call: DownloadCall, hear: Callable[[], None]) -> None:
    """Write what the call brings into the targets, one after the other."""
    targets = [t for t in targets if len(t)]
    async for chunk in call:
        hear()
        data = memoryview(_incoming(chunk))
        while data:
            if not targets:
                raise ProtocolError("a download is longer than announced")
            taken = min(len(data), len(targets[0]))
            targets[0][:taken] = data[:taken]
            data, targets[0] = data[taken:], targets[0][taken:]
            if not targets[0]:
                targets.pop(0)
    if targets:
        raise ProtocolError("a download is shorter than announced")


@dataclass(frozen=True, eq=False)
class PendingReply:
    """A reply, kept until the server has sent a receipt for it."""

    id: pb.AssignmentId
    manifest: pb.Manifest = field(default_factory=pb.Manifest)
    buffers: tuple[Buffer, ...] = ()
    failure: pb.Failure | None = None
    upload_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @classmethod
    def of(cls, work_id: pb.AssignmentId, message: Message, *, packs: bool = False) -> PendingReply:
        """The reply that an app returned; `packs`: large content outside arrays travels as bulk data.

        Raises:
            ContentError: it holds something that cannot be sent.
        """
        if message.has_error():
            return cls(work_id, failure=pb.Failure(kind=APP_ERROR, reason=message.error.reason or ""))
        manifest = records.to_manifest(message.content, with_digests=False)
        buffers = tuple(array.data for array in records.arrays_of(message.content))
        if packs and manifest.ByteSize() > WHOLE_BYTES:
            manifest, data = records.pack(manifest, with_digest=False)
            buffers = (data, *buffers)
        return cls(work_id, manifest, buffers)

    @property
    def size(self) -> int:
        """Bytes of data."""
        return sum(len(buffer) for buffer in self.buffers)

    @property
    def header(self) -> pb.UploadHeader:
        """What is sent before the data. Raises ProtocolError: it is too long."""
        header = pb.UploadHeader(
            id=self.id, upload_id=self.upload_id, manifest=self.manifest, failure=self.failure
        )
        if header.ByteSize() > _HEADER_BYTES:
            raise ProtocolError(f"a manifest of {header.ByteSize()} bytes; at most {_HEADER_BYTES} can be sent")
        return header


async def send_reply(stub: Stub, metadata: Metadata, reply: PendingReply, whole_bytes: int) -> pb.Receipt:
    """Upload a reply: in one message up to `whole_bytes` of data, else from the offset that the server names.

    Raises:
        ProtocolError: the server breaks the protocol, or the reply's manifest is too long.
        grpc.RpcError: the connection broke; call again with the same reply to continue.
    """
    send = _send_whole if whole_bytes and reply.size <= whole_bytes else _send_in_frames
    for _ in range(_TRIES):
        receipt = await send(stub, metadata, reply)
        if receipt.outcome != pb.Receipt.DAMAGED:
            return receipt
    raise ProtocolError(f"an upload arrived damaged {_TRIES} times")


async def _send_whole(stub: Stub, metadata: Metadata, reply: PendingReply) -> pb.Receipt:
    piece = framing.Run(reply.buffers).take(reply.size)
    data, digest = b"".join(_outgoing(piece)), fingerprint(*piece)
    upload = pb.WholeUpload(header=reply.header, data=data, digest=digest)
    receipt: pb.Receipt = await stub.UploadWhole(upload, metadata=metadata)
    return receipt


async def _send_in_frames(stub: Stub, metadata: Metadata, reply: PendingReply) -> pb.Receipt:
    header = pb.UploadFrame(header=reply.header)
    call = stub.Upload(metadata=metadata)
    await call.write(header)
    event = await _next_event(call)
    if event.HasField("grant"):
        event = await _send_data(call, reply, event.grant)
    if not event.HasField("receipt"):
        raise ProtocolError("the server sent no receipt for an upload")
    return event.receipt


async def _send_data(call: UploadCall, reply: PendingReply, grant: pb.Grant) -> pb.UploadEvent:
    """Send from the offset of the grant as far as it and later ones allow; returns the server's answer."""
    sent, run, until = Fingerprint(), framing.Run(reply.buffers), grant.until or reply.size
    sent.update(*run.take(grant.offset))
    while run.left:
        allowed = min(until - (reply.size - run.left), grant.frame or CHUNK_BYTES)
        if allowed > 0:
            piece = run.take(allowed)
            sent.update(*piece)
            await call.write(_outgoing(piece))
            continue
        event = await _next_event(call)
        if not event.HasField("grant"):
            return event
        until = event.grant.until
    await call.write(pb.UploadFrame(end=pb.UploadEnd(digest=sent.finish())))
    await call.done_writing()
    return await _next_event(call)


def _outgoing(piece: Piece) -> Piece:
    return fault_injection.through_all("client.upload", piece)


def _incoming(data: Data) -> Data:
    return fault_injection.through("client.download", data)


async def _next_event(call: UploadCall) -> pb.UploadEvent:
    event = await call.read()
    if not isinstance(event, pb.UploadEvent):
        await call.code()  # raises the call's error, unless the server ended it
        raise ProtocolError(f"an upload ended without a receipt: {await call.details()}")
    return event
