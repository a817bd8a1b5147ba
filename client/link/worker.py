"""One client's work: takes assignments, fetches what they need, runs the app, sees every reply through.

Filled by the link, which lends it an attendance while there is a connection. Whatever goes wrong here ends as a
reply that says so: the server must never wait for a client that has given up. Knows no task and no method.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from flwr.app import Message, RecordDict

from fednc.client.link.attendance import Attendance, progress_of
from fednc.client.link.blob_cache import BlobCache
from fednc.client.link.transfer import Reply, fetch_content, send_reply, take_along
from fednc.client.link.work_hooks import CURRENT, AppFailedError, CancelledError, Hooks, Step
from fednc.common import fault_injection, flower_adapter
from fednc.common.errors import FedncError, ProtocolError
from fednc.common.reasons import CodedError, failure_of
from fednc.common.wire import records
from fednc.common.wire.protocol import LONG_TEXT, one_line, plain
from fednc.protos import federation_pb2 as pb

log = logging.getLogger("fednc.client")
T = TypeVar("T")
BeforeDownload = Callable[[pb.AssignmentId, int], None]  # work, bytes that it brings; raises to refuse

BACKOFF_S = (0.1, 5.0)  # first and longest pause between attempts
_DRAIN_POLL_S = 0.05
_DOWNLOADS = 3  # tries at one assignment's content
_POINTLESS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


class App(Protocol):
    """What answers instructions."""

    def work(self, message: Message) -> Message:
        """Answer one instruction; blocking."""


@dataclass(eq=False)
class _Work:
    """One assignment, from its arrival until the server has settled its reply."""

    id: pb.AssignmentId
    content: pb.Manifest
    blobs: Sequence[bytes]  # what came along
    hooks: Hooks

    def __str__(self) -> str:
        return f"{self.id.message_type} of round {self.id.group_id}" if self.id.group_id else self.id.message_type


def accept_any_size(_work_id: pb.AssignmentId, _size: int) -> None:
    """Refuses no download."""


class Worker:
    """The work of one client, one piece after the other."""

    def __init__(
        self, app: App, before_download: BeforeDownload, admit: Callable[[int], None], *, packs: bool = False
    ) -> None:
        """`before_download` judges an instruction, `admit` whether so many bytes of it can be fetched.

        `packs`: replies may hold large things outside arrays, as those of foreign apps do.
        """
        self._app, self._packs = app, packs
        self._before_download, self._admit = before_download, admit
        self._cache = BlobCache()
        self._attendance: asyncio.Future[Attendance] = asyncio.get_running_loop().create_future()
        self._active: dict[bytes, _Work] = {}
        self._todo: asyncio.Queue[_Work] = asyncio.Queue()
        self._transfer: asyncio.Future[Any] | None = None  # under way over the attendance
        self.running = threading.Event()  # cleared: work holds at its next batch
        self.running.set()

    @property
    def attendance(self) -> Attendance | None:
        """The connection that there is."""
        return self._attendance.result() if self._attendance.done() else None

    def connect(self, attendance: Attendance) -> None:
        """There is a connection to work over."""
        self._attendance.set_result(attendance)

    def disconnect(self) -> None:
        """It is gone; transfers wait for the next one."""
        if self._attendance.done():
            self._attendance = asyncio.get_running_loop().create_future()
        if self._transfer:
            self._transfer.cancel()  # a line that swallows everything would never end it

    def accept(self, assignment: pb.Assignment) -> None:
        """Take on an assignment; one that is under way already goes on as it is."""
        key = _key(assignment.id)
        if key in self._active:
            return
        for older in self._active.values():
            if older.id.attempt < assignment.id.attempt:  # of a server that was restarted since
                older.hooks.cancelled.set()
        loop = asyncio.get_running_loop()

        def report(step: Step) -> None:
            loop.call_soon_threadsafe(self._note_progress, assignment.id, step)

        hooks = Hooks(report=report, running=self.running)
        self._active[key] = work = _Work(assignment.id, assignment.content, assignment.blobs, hooks)
        self._todo.put_nowait(work)

    def cancel(self, cancel: pb.Cancel) -> None:
        """The server does not wait for this work any more."""
        work = self._active.get(_key(cancel.id))
        if work:
            log.info("%s: %s", work, one_line(cancel.reason, LONG_TEXT))
            work.hooks.cancelled.set()

    def cancel_all(self) -> None:
        """Nobody waits for anything."""
        for work in self._active.values():
            work.hooks.cancelled.set()

    def forget_run(self) -> None:
        """The run is over; so is its work."""
        self.cancel_all()
        self._cache = BlobCache()

    async def drain(self) -> None:
        """Return when what is at hand is settled, or cannot be."""
        while self._active and self._attendance.done():
            await asyncio.sleep(_DRAIN_POLL_S)

    def _note_progress(self, work_id: pb.AssignmentId, step: Step) -> None:
        if self.attendance:
            self.attendance.outbox.put_nowait(progress_of(work_id, step))

    # ---- one piece after the other -------------------------------------------------------------------------

    async def work_for_ever(self) -> None:
        """Answer every assignment that is accepted."""
        while True:
            work = await self._todo.get()
            try:
                await self._do(work)
            except FedncError as e:  # the server does not take it, and says why
                log.error("%s could not be answered: %s", work, e)
            except Exception:
                log.exception("%s could not be answered", work)
            finally:
                self._active.pop(_key(work.id), None)

    async def _do(self, work: _Work) -> None:
        reply = await self._reply_to(work)
        if reply is None:
            return
        try:
            receipt = await self._send(work, reply)
        except (FedncError, OSError, MemoryError) as e:
            log.error("the reply to %s cannot be sent: %s", work, e)
            receipt = await self._send(work, _failed(work, e))
        if receipt and receipt.outcome in (pb.Receipt.LATE, pb.Receipt.REJECTED):
            log.warning("the server did not take the reply to %s: %s", work, one_line(receipt.reason, LONG_TEXT))

    async def _send(self, work: _Work, reply: Reply) -> pb.Receipt | None:
        return await self._persist(work, lambda s: send_reply(s.stub, s.metadata, reply, s.whole_bytes))

    async def _reply_to(self, work: _Work) -> Reply | None:
        """What the app made of it, or why nothing came of it; None where nobody waits any more."""
        try:
            content = await self._fetch(work)
            if content is None:
                return None
            CURRENT.set(work.hooks)
            answer = await asyncio.to_thread(self._answer, work, content)
            return Reply.of(work.id, answer, packs=self._packs)
        except CancelledError:
            return None
        except Exception as e:
            traced = not isinstance(e, AppFailedError | CodedError)  # which have told their own story
            log.error("%s failed: %s", work, e, exc_info=traced)
            return _failed(work, e)

    def _answer(self, work: _Work, content: RecordDict) -> Message:
        message = flower_adapter.instruction(
            content,
            run_id=work.id.run_id,
            dst=work.id.node_id,
            message_type=work.id.message_type,
            group_id=work.id.group_id,
        )
        fault_injection.at("client.work")
        work.hooks.check()
        answer = self._app.work(message)
        fault_injection.at("client.reply")
        return answer

    async def _fetch(self, work: _Work) -> RecordDict | None:
        """The content; downloaded again where it arrived damaged. Raises ProtocolError where it always does."""
        self._before_download(work.id, records.bulk_bytes(work.content))
        take_along(work.blobs, work.content, self._cache)
        for tries_left in reversed(range(_DOWNLOADS)):
            try:
                return await self._persist(work, lambda s: self._download(s, work.content))
            except ProtocolError as e:
                if not tries_left:
                    raise
                log.warning("%s: %s; trying again", work, e)
        return None

    async def _download(self, attendance: Attendance, content: pb.Manifest) -> RecordDict:
        with attendance.downloading():
            return await fetch_content(
                attendance.stub, attendance.metadata, content, self._cache, attendance.hear, self._admit
            )

    async def _persist(self, work: _Work, step: Callable[[Attendance], Awaitable[T]]) -> T | None:
        """The step's result, tried again over new attendances until the work is cancelled."""
        pause_s = BACKOFF_S[0]
        while not work.hooks.cancelled.is_set():
            attendance = await asyncio.shield(self._attendance)
            self._transfer = transfer = asyncio.ensure_future(step(attendance))
            try:
                return await transfer
            except grpc.aio.AioRpcError as e:
                if e.code() is grpc.StatusCode.NOT_FOUND:
                    return None  # the work it belonged to is over
                if e.code() in _POINTLESS:
                    raise ProtocolError(one_line(e.details() or e.code().name, LONG_TEXT)) from e
                log.info("transfer for %s interrupted (%s)", work, e.code().name.lower())
            except asyncio.InvalidStateError:  # gRPC's, for a write on a call that has just ended
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
    """So that a thousand clients do not come back at the same moment."""
    return pause_s * random.uniform(0.5, 1.5)  # noqa: S311


def _failed(work: _Work, error: BaseException) -> Reply:
    """The reply that says so by a fixed code; what went wrong in detail stays in this client's log."""
    if isinstance(error, AppFailedError):  # what was raised elsewhere
        kind, reason = failure_of(error, foreign=error.kind)
        if error.kind in flower_adapter.TELLING:
            reason = plain(str(error), LONG_TEXT)
        return Reply(work.id, failure=pb.Failure(code=error.code, kind=kind, reason=reason))
    kind, reason = failure_of(error)
    return Reply(work.id, failure=pb.Failure(kind=kind, reason=reason))


def _key(work_id: pb.AssignmentId) -> bytes:
    return work_id.SerializeToString(deterministic=True)
