"""One attendance at a server: the request that opens it, the events that come down it, the word that goes up.

Used by the link, which comes back after broken ones, and by the rehearsal, which does not.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import grpc

from fednc.client.hooks import Step
from fednc.client.transfer import Metadata
from fednc.common.wire import PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc

if TYPE_CHECKING:
    from fednc.client.link import LinkConfig

Events = grpc.aio.UnaryStreamCall[pb.AttendRequest, pb.ServerEvent]


@dataclass(eq=False)
class Session:
    """Valid until its stream ends."""

    stub: rpc.FederationStub
    metadata: Metadata
    outbox: asyncio.Queue[pb.Progress | pb.Declaration] = field(default_factory=asyncio.Queue)


def attend_request(config: LinkConfig, instance: bytes = b"", *, dry_run: bool = False) -> pb.AttendRequest:
    """What opens an attendance."""
    return pb.AttendRequest(
        protocol=PROTOCOL, name=config.name, software=version("fednc"), tasks=config.tasks,
        methods=config.methods, part=config.part, app=config.app, instance=instance, dry_run=dry_run,
    )  # fmt: skip


def progress_of(work_id: pb.AssignmentId, step: Step) -> pb.Progress:
    """A step of local work as it travels."""
    return pb.Progress(
        id=work_id,
        step=step.step,
        steps=step.steps,
        loss=step.loss,
        examples_per_s=step.examples_per_s,
        device_memory_bytes=step.device_memory_bytes,
    )


async def read_event(call: Events) -> pb.ServerEvent:
    """The next event. Raises AioRpcError when the stream has ended, however it did."""
    event = await call.read()
    if isinstance(event, pb.ServerEvent):
        return event
    await call.code()
    raise grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "the server closed the stream"
    )


async def send_word(session: Session) -> None:
    """Send progress and changed declarations, in order, while the session lasts; never disturbs the work."""
    try:
        call = session.stub.Report(metadata=session.metadata)
        while True:
            word = await session.outbox.get()
            if isinstance(word, pb.Declaration):
                await session.stub.Declare(word, metadata=session.metadata)
            else:
                await call.write(word)
            session.outbox.task_done()
    except grpc.aio.AioRpcError:
        pass
