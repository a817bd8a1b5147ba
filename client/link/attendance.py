"""One attendance at a server: its open `Attend` stream and the other calls that it allows, until the stream ends.

Opened by the link, which opens another when the connection breaks; the worker downloads and uploads over it. Knows
nothing about apps or of the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from flwr.app import RecordDict

from fednc.client.link.blob_cache import BlobCache
from fednc.client.link.transfer import PendingReply, Stub, fetch_content, send_reply
from fednc.client.link.work_hooks import LocalProgress
from fednc.common.wire.protocol import ATTENDANCE_KEY, BEATS, BULK_FACTOR, WHOLE_BYTES
from fednc.protos import federation_pb2 as pb

Events = grpc.aio.UnaryStreamCall[pb.AttendRequest, pb.ServerEvent]


class Attendance:
    """The client's side of one attendance."""

    def __init__(self, stub: Stub, events: Events, welcome: pb.Welcome, liveness_s: float) -> None:
        """`events` has brought `welcome`; `liveness_s` holds where the server names no other."""
        self.welcome = welcome
        self._stub, self._events = stub, events
        self._metadata = ((ATTENDANCE_KEY, welcome.attendance),)
        self._liveness_s = welcome.liveness_s or liveness_s
        self._whole_bytes = min(welcome.whole_bytes, WHOLE_BYTES)
        self._outbox: asyncio.Queue[pb.Progress | pb.Declaration] = asyncio.Queue()
        self._heard_at = time.monotonic()
        self._downloads = 0  # under way

    # ---- control -------------------------------------------------------------------------------------------

    async def next_event(self) -> pb.ServerEvent:
        """The next event. Raises AioRpcError when the stream has ended or the server has fallen silent."""
        reading = asyncio.ensure_future(read_event(self._events))
        try:
            while not (await asyncio.wait({reading}, timeout=self._liveness_s / BEATS))[0]:
                if time.monotonic() - self._heard_at > self._patience_s:
                    raise _unavailable(f"the server was silent for {self._patience_s:g} s")
            self.hear()
            return reading.result()
        finally:
            reading.cancel()

    async def declare(self, declaration: pb.Declaration) -> None:
        """Tell the server what this client holds and how it stands; return once it knows."""
        await self._stub.Declare(declaration, metadata=self._metadata)

    def announce(self, declaration: pb.Declaration) -> None:
        """Queue a changed declaration; it goes out in order with progress."""
        self._outbox.put_nowait(declaration)

    def report(self, work_id: pb.AssignmentId, progress: LocalProgress) -> None:
        """Queue progress of local work."""
        self._outbox.put_nowait(
            pb.Progress(
                id=work_id,
                step=progress.step,
                steps=progress.steps,
                loss=progress.loss,
                examples_per_s=progress.examples_per_s,
                device_memory_bytes=progress.device_memory_bytes,
            )
        )

    async def flush(self) -> None:
        """Wait until all that was queued is out, but no longer than either side waits for a sign of life."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._outbox.join(), self._liveness_s)

    async def send_queued(self) -> None:
        """Send what is queued, and signs of life in between, until the attendance ends."""
        loop = asyncio.get_running_loop()
        try:
            call = self._stub.Report(metadata=self._metadata)
            while True:
                beat = loop.call_later(self._liveness_s / BEATS, self._outbox.put_nowait, pb.Progress())
                try:
                    queued = await self._outbox.get()
                finally:
                    beat.cancel()
                if isinstance(queued, pb.Declaration):
                    await self.declare(queued)
                else:
                    await call.write(queued)
                self._outbox.task_done()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the latter for a call that has just ended
            pass

    def hear(self) -> None:
        """Note a sign of life of the server."""
        self._heard_at = time.monotonic()

    @property
    def _patience_s(self) -> float:
        """How long the server may be silent: longer while what it says may wait behind bulk data."""
        return self._liveness_s * (BULK_FACTOR if self._downloads else 1)

    # ---- bulk ----------------------------------------------------------------------------------------------

    async def fetch(self, content: pb.Manifest, cache: BlobCache, admit: Callable[[int], None]) -> RecordDict:
        """The content of an assignment; see `transfer.fetch_content`."""
        with self._downloading():
            return await fetch_content(self._stub, self._metadata, content, cache, self.hear, admit)

    async def send(self, reply: PendingReply) -> pb.Receipt:
        """Upload a reply; see `transfer.send_reply`."""
        return await send_reply(self._stub, self._metadata, reply, self._whole_bytes)

    @contextmanager
    def _downloading(self) -> Iterator[None]:
        self._downloads += 1
        try:
            yield
        finally:
            self._downloads -= 1
            self.hear()


async def read_event(events: Events) -> pb.ServerEvent:
    """The next event. Raises AioRpcError when the stream has ended, however it did."""
    event = await events.read()
    if isinstance(event, pb.ServerEvent):
        return event
    await events.code()
    raise _unavailable("the server closed the stream")


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
