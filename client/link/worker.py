"""One client's work: takes assignments, downloads their content, runs the app, and uploads each reply.

Owned by the link, which lends it an attendance while there is a connection. Every failure here becomes a reply:
the server must never wait for a client that has given up. Knows no task and no method.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from flwr.app import Message, RecordDict

from fednc.client.link.attendance import Attendance
from fednc.client.link.blob_cache import BlobCache
from fednc.client.link.transfer import PendingReply, take_along
from fednc.client.link.work_hooks import CURRENT, AppFailedError, Hooks, LocalProgress, WorkCancelledError
from fednc.common import fault_injection, flower_adapter
from fednc.common.errors import FedncError, ProtocolError
from fednc.common.peer_text import LONG_TEXT, one_line, plain
from fednc.common.waiting import Deadline, wait_until_async
from fednc.common.wire import records
from fednc.common.wire.failure_reasons import CodedError, failure_of
from fednc.protos import federation_pb2 as pb

log = logging.getLogger("fednc.client")
T = TypeVar("T")
BeforeDownload = Callable[[pb.AssignmentId, int], None]  # which work, how many bytes; raises to refuse

BACKOFF_S = (0.1, 5.0)  # first and longest pause between attempts
_DRAIN_POLL_S = 0.05
_DOWNLOADS = 3  # attempts at one assignment's content
_POINTLESS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


@dataclass(eq=False)
class _LocalWork:
    """One assignment, from its arrival to the server's receipt for its reply."""

    id: pb.AssignmentId
    content: pb.Manifest
    blobs: Sequence[bytes]  # came with the assignment
    hooks: Hooks

    def __str__(self) -> str:
        return f"{self.id.message_type} of round {self.id.group_id}" if self.id.group_id else self.id.message_type


def accept_any_size(_work_id: pb.AssignmentId, _size: int) -> None:
    """Refuses nothing."""


class Worker:
    """Does one assignment after the other."""

    def __init__(
        self,
        answer: Callable[[Message], Message],
        before_download: BeforeDownload,
        admit: Callable[[int], None],
        *,
        packs: bool = False,
    ) -> None:
        """
        Args:
            answer: answers one instruction; runs in a thread.
            before_download: judges an instruction by the bytes that it brings.
            admit: judges whether so many bytes can be downloaded.
            packs: replies may hold large things outside arrays, as those of foreign apps do.
        """
        self._answer, self._packs = answer, packs
        self._before_download, self._admit = before_download, admit
        self._cache = BlobCache()
        self._attendance: asyncio.Future[Attendance] = asyncio.get_running_loop().create_future()
        self._active: dict[bytes, _LocalWork] = {}
        self._todo: asyncio.Queue[_LocalWork] = asyncio.Queue()
        self._transfer: asyncio.Future[Any] | None = None  # under way over the attendance
        self._running = threading.Event()  # cleared: work holds at its next batch
        self._running.set()

    def connect(self, attendance: Attendance) -> None:
        """Transfer over this attendance from now on."""
        self._attendance.set_result(attendance)

    def disconnect(self) -> None:
        """The attendance is over; transfers wait for the next one."""
        if self._attendance.done():
            self._attendance = asyncio.get_running_loop().create_future()
        if self._transfer:
            self._transfer.cancel()  # over a connection that drops everything it would never end

    def hold(self) -> None:
        """Let work hold at its next batch."""
        self._running.clear()

    def go_on(self) -> None:
        """Let work that holds go on."""
        self._running.set()

    def accept(self, assignment: pb.Assignment) -> None:
        """Take an assignment; one that is already under way continues."""
        key = _key(assignment.id)
        if key in self._active:
            return
        for older in self._active.values():
            if older.id.attempt < assignment.id.attempt:  # the server has been restarted since
                older.hooks.cancelled.set()
        loop = asyncio.get_running_loop()

        def report(progress: LocalProgress) -> None:
            loop.call_soon_threadsafe(self._report, assignment.id, progress)

        hooks = Hooks(report=report, running=self._running)
        self._active[key] = work = _LocalWork(assignment.id, assignment.content, assignment.blobs, hooks)
        self._todo.put_nowait(work)

    def cancel(self, cancel: pb.Cancel) -> None:
        """The server no longer needs this work."""
        work = self._active.get(_key(cancel.id))
        if work:
            log.info("%s: %s", work, one_line(cancel.reason, LONG_TEXT))
            work.hooks.cancelled.set()

    def cancel_all(self) -> None:
        """Nothing is needed any more."""
        for work in self._active.values():
            work.hooks.cancelled.set()

    def forget_run(self) -> None:
        """The run is over: cancel its work and drop its blobs."""
        self.cancel_all()
        self._cache = BlobCache()

    async def drain(self) -> None:
        """Return when the current work is finished, or cannot be because there is no connection."""
        await wait_until_async(lambda: not (self._active and self._attendance.done()), Deadline(), _DRAIN_POLL_S)

    def _report(self, work_id: pb.AssignmentId, progress: LocalProgress) -> None:
        if self._attendance.done():
            self._attendance.result().report(work_id, progress)

    # ---- one assignment -------------------------------------------------------------------------------------

    async def work_for_ever(self) -> None:
        """Answer every accepted assignment."""
        while True:
            work = await self._todo.get()
            try:
                await self._do(work)
            except FedncError as e:  # the server rejects the reply and says why
                log.error("%s could not be answered: %s", work, e)
            except Exception:
                log.exception("%s could not be answered", work)
            finally:
                self._active.pop(_key(work.id), None)

    async def _do(self, work: _LocalWork) -> None:
        reply = await self._reply_to(work)
        if reply is None:
            return
        try:
            receipt = await self._send(work, reply)
        except (FedncError, OSError, MemoryError) as e:
            log.error("the reply to %s cannot be sent: %s", work, e)
            receipt = await self._send(work, _failed(work, e))
        if receipt and receipt.outcome in (pb.Receipt.LATE, pb.Receipt.REJECTED):
            log.warning("the server did not accept the reply to %s: %s", work, one_line(receipt.reason, LONG_TEXT))

    async def _send(self, work: _LocalWork, reply: PendingReply) -> pb.Receipt | None:
        return await self._transfer_until_done(work, lambda a: a.send(reply))

    async def _reply_to(self, work: _LocalWork) -> PendingReply | None:
        """The app's reply, or one that says why there is none; None if the work was cancelled."""
        try:
            content = await self._fetch(work)
            if content is None:
                return None
            CURRENT.set(work.hooks)
            answer = await asyncio.to_thread(self._do_work, work, content)
            return PendingReply.of(work.id, answer, packs=self._packs)
        except WorkCancelledError:
            return None
        except Exception as e:
            traced = not isinstance(e, AppFailedError | CodedError)  # these explain themselves
            log.error("%s failed: %s", work, e, exc_info=traced)
            return _failed(work, e)

    def _do_work(self, work: _LocalWork, content: RecordDict) -> Message:
        message = flower_adapter.instruction(
            content,
            run_id=work.id.run_id,
            dst=work.id.node_id,
            message_type=work.id.message_type,
            group_id=work.id.group_id,
        )
        fault_injection.at("client.work")
        work.hooks.check()
        answer = self._answer(message)
        fault_injection.at("client.reply")
        return answer

    async def _fetch(self, work: _LocalWork) -> RecordDict | None:
        """The content, downloaded again if it arrives damaged. Raises ProtocolError: it was damaged each time."""
        self._before_download(work.id, records.bulk_bytes(work.content))
        take_along(work.blobs, work.content, self._cache)
        for tries_left in reversed(range(_DOWNLOADS)):
            try:
                return await self._transfer_until_done(
                    work, lambda a: a.fetch(work.content, self._cache, self._admit)
                )
            except ProtocolError as e:
                if not tries_left:
                    raise
                log.warning("%s: %s; trying again", work, e)
        return None

    async def _transfer_until_done(self, work: _LocalWork, step: Callable[[Attendance], Awaitable[T]]) -> T | None:
        """The result of a transfer, repeated over new attendances until it succeeds or the work is cancelled."""
        pause_s = BACKOFF_S[0]
        while not work.hooks.cancelled.is_set():
            attendance = await asyncio.shield(self._attendance)
            self._transfer = transfer = asyncio.ensure_future(step(attendance))
            try:
                return await transfer
            except grpc.aio.AioRpcError as e:
                if e.code() is grpc.StatusCode.NOT_FOUND:
                    return None  # the work is over
                if e.code() in _POINTLESS:
                    raise ProtocolError(one_line(e.details() or e.code().name, LONG_TEXT)) from e
                log.info("transfer for %s interrupted (%s)", work, e.code().name.lower())
            except asyncio.InvalidStateError:  # from gRPC: the call had just ended
                log.info("transfer for %s interrupted", work)
            except asyncio.CancelledError:
                if _is_cancelled():
                    transfer.cancel()
                    raise
                log.info("transfer for %s interrupted (connection closed)", work)
            await asyncio.sleep(jittered(pause_s))
            pause_s = min(2 * pause_s, BACKOFF_S[1])
        return None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def jittered(pause_s: float) -> float:
    """A random pause, so that a thousand clients do not reconnect at the same moment."""
    return pause_s * random.uniform(0.5, 1.5)  # noqa: S311


def _failed(work: _LocalWork, error: BaseException) -> PendingReply:
    """A reply that reports the failure with a fixed code; the details stay in this client's log."""
    if isinstance(error, AppFailedError):  # raised in the app's process
        kind, reason = failure_of(error, foreign=error.kind)
        if error.kind in flower_adapter.TELLING:
            reason = plain(str(error), LONG_TEXT)
        return PendingReply(work.id, failure=pb.Failure(code=error.code, kind=kind, reason=reason))
    kind, reason = failure_of(error)
    return PendingReply(work.id, failure=pb.Failure(kind=kind, reason=reason))


def _key(work_id: pb.AssignmentId) -> bytes:
    return work_id.SerializeToString(deterministic=True)
