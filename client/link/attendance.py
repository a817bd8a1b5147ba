"""One attendance at a server: the request that opens it, the events that come down it, the word that goes up.

Used by the link, which comes back after broken ones, and by the rehearsal, which does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import grpc

from fednc.client.link.transfer import Metadata
from fednc.client.link.work_hooks import Step
from fednc.common.wire.protocol import BEATS, BULK_FACTOR, PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc

if TYPE_CHECKING:
    from fednc.client.link.link import LinkConfig

Events = grpc.aio.UnaryStreamCall[pb.AttendRequest, pb.ServerEvent]


@dataclass(eq=False)
class Attendance:
    """Valid until its stream ends."""

    stub: rpc.FederationStub
    metadata: Metadata
    liveness_s: float = 5.0
    whole_bytes: int = 0  # a reply with so much data may go in one message
    outbox: asyncio.Queue[pb.Progress | pb.Declaration] = field(default_factory=asyncio.Queue)
    heard_at: float = field(default_factory=time.monotonic)
    downloads: int = 0  # under way

    def hear(self) -> None:
        """Note a sign of life of the server."""
        self.heard_at = time.monotonic()

    @contextmanager
    def downloading(self) -> Iterator[None]:
        """While the block runs, what the server says may be waiting behind bulk data."""
        self.downloads += 1
        try:
            yield
        finally:
            self.downloads -= 1
            self.hear()

    @property
    def patience_s(self) -> float:
        """How long the server may be silent."""
        return self.liveness_s * (BULK_FACTOR if self.downloads else 1)

    async def next_event(self, call: Events) -> pb.ServerEvent:
        """The next event. Raises AioRpcError when the stream has ended or the server has fallen silent."""
        reading = asyncio.ensure_future(read_event(call))
        try:
            while not (await asyncio.wait({reading}, timeout=self.liveness_s / BEATS))[0]:
                if time.monotonic() - self.heard_at > self.patience_s:
                    raise _unavailable(f"the server was silent for {self.patience_s:g} s")
            self.hear()
            return reading.result()
        finally:
            reading.cancel()


def attend_request(config: LinkConfig, instance: bytes = b"", *, dry_run: bool = False) -> pb.AttendRequest:
    """What opens an attendance."""
    return pb.AttendRequest(
        protocol=PROTOCOL,
        name=config.name,
        software=version("fednc"),
        tasks=config.tasks,
        methods=config.methods,
        part=config.part,
        app=config.app,
        instance=instance,
        dry_run=dry_run,
        app_code=config.app_code,
    )


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
    raise _unavailable("the server closed the stream")


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def send_word(attendance: Attendance) -> None:
    """Send progress, changed declarations and signs of life until the attendance ends; never disturbs the work."""
    loop = asyncio.get_running_loop()
    try:
        call = attendance.stub.Report(metadata=attendance.metadata)
        while True:
            beat = loop.call_later(attendance.liveness_s / BEATS, attendance.outbox.put_nowait, pb.Progress())
            try:
                word = await attendance.outbox.get()
            finally:
                beat.cancel()
            if isinstance(word, pb.Declaration):
                await attendance.stub.Declare(word, metadata=attendance.metadata)
            else:
                await call.write(word)
            attendance.outbox.task_done()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter for a call that has just ended
        pass
