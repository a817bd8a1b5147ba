"""A node without a client. It speaks the protocol by hand, so tests can send what no client would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc
from flwr.app import RecordDict

from fednc.client.link.channel import Credentials, open_channel
from fednc.common import flower_adapter
from fednc.common.wire import records
from fednc.common.wire.checksum import fingerprint
from fednc.common.wire.protocol import ATTENDANCE_KEY, PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server.link.assignments import Batch, Content, Work
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node

UPLOAD_ID = bytes(16)
PIECE_BYTES = 64 << 10  # the smallest first grant of an upload


def data_of(content: RecordDict) -> bytes:
    """All data of a reply, in the manifest's order."""
    return b"".join(bytes(array.data) for array in records.arrays_of(content))


def data_frames(data: bytes) -> list[pb.UploadFrame]:
    """Data in messages of the largest size that every server accepts."""
    return [pb.UploadFrame(data=data[i : i + PIECE_BYTES]) for i in range(0, len(data), PIECE_BYTES)]


def end_frame(data: bytes) -> pb.UploadFrame:
    """The end of an upload of `data`."""
    return pb.UploadFrame(end=pb.UploadEnd(digest=fingerprint(data)))


@dataclass
class RawNode:
    """A connected node and its federation."""

    federation: Federation
    channel: grpc.aio.Channel
    name: str
    welcome: pb.Welcome
    events: grpc.aio.UnaryStreamCall
    batch: Batch = field(default_factory=Batch)

    @property
    def stub(self) -> rpc.FederationStub:
        return rpc.FederationStub(self.channel)

    @property
    def metadata(self) -> tuple[tuple[str, bytes]]:
        return ((ATTENDANCE_KEY, self.welcome.attendance),)

    @property
    def node(self) -> Node:
        found = self.federation.roster.by_id(self.welcome.node_id)
        assert found
        return found

    async def ended(self) -> grpc.StatusCode:
        """How its `Attend` call ends."""
        with suppress(grpc.aio.AioRpcError):
            while await self.events.read() is not grpc.aio.EOF:
                pass
        return await self.events.code()

    async def declare(self, declaration: pb.Declaration | None = None) -> None:
        await self.stub.Declare(declaration or pb.Declaration(examples=10, device="cpu"), metadata=self.metadata)

    def give_work(self, message_type: str = "train", group: str = "1") -> Work:
        """Send this node an assignment."""
        ordinal = len(self.batch.works)
        work_id = pb.AssignmentId(
            run_id=self.federation.run_id,
            group_id=group,
            message_type=message_type,
            node_id=self.welcome.node_id,
            ordinal=ordinal,
        )
        instruction = flower_adapter.instruction(
            RecordDict(),
            run_id=self.federation.run_id,
            dst=self.welcome.node_id,
            message_type=message_type,
            group_id=group,
        )
        work = Work(work_id, self.node, instruction, Content(pb.Manifest()), self.batch)
        self.federation.dispatch(Batch(works=[work]), {})
        self.batch.works.append(work)
        return work

    def header(self, work: Work, manifest: pb.Manifest, upload_id: bytes = UPLOAD_ID) -> pb.UploadFrame:
        return pb.UploadFrame(header=pb.UploadHeader(id=work.id, upload_id=upload_id, manifest=manifest))

    async def upload(self, frames: Sequence[pb.UploadFrame]) -> list[pb.UploadEvent]:
        """The server's answer to these frames, sent at once."""
        call = self.stub.Upload(iter(frames), metadata=self.metadata)
        return [event async for event in call]

    async def send(self, work: Work, content: RecordDict) -> pb.Receipt:
        """Send a whole reply as a client does."""
        data = data_of(content)
        frames = [self.header(work, records.to_manifest(content, with_digests=False))]
        return (await self.upload([*frames, *data_frames(data), end_frame(data)]))[-1].receipt


@asynccontextmanager
async def attending_by_hand(
    federation: Federation, port: int, name: str, credentials: Credentials | None = None
) -> AsyncIterator[RawNode]:
    async with open_channel(f"127.0.0.1:{port}", credentials, 5) as channel:
        request = pb.AttendRequest(protocol=PROTOCOL, name=name, instance=name.encode())
        call = rpc.FederationStub(channel).Attend(request)
        welcome = (await call.read()).welcome
        node = RawNode(federation, channel, name, welcome, call)
        await node.declare()
        yield node
        call.cancel()
