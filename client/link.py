"""The resident gRPC link of one client: attend, declare, work, reply, come back when the connection breaks.

Runs on an event loop; the app (blocking: data, training) runs in a worker thread. Knows no task and no method;
`Host` is all it asks of the app.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc
from flwr.app import Message

from fednc.client.blobcache import BlobCache
from fednc.client.channel import Credentials, explain, is_expired_refusal, open_channel
from fednc.client.hooks import CURRENT, CancelledError, Hooks, Step
from fednc.client.session import Events, Session, attend_request, progress_of, read_event, send_word
from fednc.client.transfer import Reply, fetch_content, send_reply, session_metadata
from fednc.common import flower
from fednc.common.errors import FedncError, RefusedError
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc

log = logging.getLogger("fednc.client")
T = TypeVar("T")

_FINAL = (
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_BACKOFF_S = (0.1, 5.0)  # first and longest pause between attempts
_SAY_SO_EVERY_S = 10.0
_DRAIN_POLL_S = 0.05


class Host(Protocol):
    """What runs inside the link."""

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Get ready for a run; blocking. Raises FedncError when this client cannot take part."""

    def work(self, message: Message) -> Message:
        """Answer one instruction; blocking."""

    def leave(self) -> None:
        """The run is over."""


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How to reach the server and as whom."""

    server: str
    name: str
    credentials: Credentials | None = None  # None: plaintext
    part: pb.Part | None = None
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    liveness_s: float = 5.0
    once: bool = False


@dataclass(eq=False)
class _Work:
    """One assignment, from its arrival until the server has settled its reply."""

    id: pb.AssignmentId
    content: pb.Manifest
    hooks: Hooks


class Link:
    """One client's link to one server."""

    def __init__(self, config: LinkConfig, host: Host) -> None:
        self._config, self._host = config, host
        self._instance = secrets.token_bytes(8)
        self._cache = BlobCache()
        self._run_id = ""
        self._declaration: pb.Declaration | None = None
        self._session: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._active: dict[bytes, _Work] = {}
        self._todo: asyncio.Queue[_Work] = asyncio.Queue()
        self._standing = pb.Declaration.READY
        self._running = threading.Event()  # cleared: work holds at its next batch
        self._running.set()

    async def run(self) -> pb.RunOver:
        """Attend until the run is over (`once`) or for ever.

        Raises:
            RefusedError: the server will not have this client.
            FedncError: this client cannot take part in the run.
        """
        worker = asyncio.create_task(self._work_for_ever())
        try:
            while True:
                over = await self._attend_patiently()
                log.info("run %s is over: %s", self._run_id, over.reason)
                self._leave_run()
                if self._config.once:
                    return over
        finally:
            for work in self._active.values():
                work.hooks.cancelled.set()
            worker.cancel()

    # ---- how this client stands --------------------------------------------------------------------------

    def pause(self) -> None:
        """Hold at the next batch, want no more work, and let the server know."""
        log.info("paused: work holds at its next batch")
        self._running.clear()
        self._stand(pb.Declaration.PAUSED)

    def resume(self) -> None:
        """Go on where `pause` held."""
        log.info("going on")
        self._running.set()
        self._stand(pb.Declaration.READY)

    async def drain(self) -> None:
        """Want no more work; return when what is at hand is settled, or cannot be."""
        self._running.set()
        self._stand(pb.Declaration.LEAVING)
        while self._active and self._session.done():
            await asyncio.sleep(_DRAIN_POLL_S)

    def _stand(self, standing: pb.Declaration.Standing) -> None:
        self._standing = standing
        if self._session.done() and self._declaration and self._declaration.standing != standing:
            self._declaration.standing = standing
            self._session.result().outbox.put_nowait(self._declaration)

    # ---- attending -----------------------------------------------------------------------------------------

    async def _attend_patiently(self) -> pb.RunOver:
        """Attend, and come back after broken connections, with growing and jittered pauses."""
        pause_s, said = _BACKOFF_S[0], time.monotonic() - _SAY_SO_EVERY_S
        while True:
            started = time.monotonic()
            try:
                return await self._attend()
            except grpc.aio.AioRpcError as e:
                if e.code() in _FINAL:
                    raise RefusedError(e.details() or e.code().name) from e
                if is_expired_refusal(e, self._config.credentials):
                    raise RefusedError("this client's certificate has expired; the operator can renew it") from e
                if time.monotonic() - said >= _SAY_SO_EVERY_S:
                    said, why = time.monotonic(), explain(e, self._config.credentials)
                    log.info("no connection to %s (%s); trying again", self._config.server, why)
            if time.monotonic() - started > _BACKOFF_S[1]:
                pause_s = _BACKOFF_S[0]  # it was a long attendance, not a failed attempt
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, _BACKOFF_S[1])

    async def _attend(self) -> pb.RunOver:
        config = self._config
        async with open_channel(config.server, config.credentials, config.liveness_s) as channel:
            stub = rpc.FederationStub(channel)
            call = stub.Attend(attend_request(config, self._instance))
            try:
                welcome = (await read_event(call)).welcome
                session = Session(stub, session_metadata(welcome.session))
                await self._declare(welcome, session)
                reporter = asyncio.create_task(send_word(session))
                self._session.set_result(session)
                self._stand(self._standing)
                try:
                    return await self._listen(call)
                finally:
                    reporter.cancel()
            finally:
                call.cancel()
                if self._session.done():
                    self._session = asyncio.get_running_loop().create_future()

    async def _declare(self, welcome: pb.Welcome, session: Session) -> None:
        if welcome.run_id != self._run_id:
            self._leave_run()
            self._run_id = welcome.run_id
        if self._declaration is None:
            log.info("run %s at %s: loading data", welcome.run_id, self._config.server)
            try:
                self._declaration = await asyncio.to_thread(self._host.prepare, welcome)
            except FedncError as e:
                await session.stub.Declare(pb.Declaration(problem=str(e)), metadata=session.metadata)
                raise
        self._declaration.standing = self._standing
        await session.stub.Declare(self._declaration, metadata=session.metadata)
        log.info("ready with %d examples on %s", self._declaration.examples, self._declaration.device)

    async def _listen(self, call: Events) -> pb.RunOver:
        while True:
            event = await read_event(call)
            if event.HasField("assignment"):
                self._accept(event.assignment)
            elif event.HasField("cancel"):
                work = self._active.get(_key(event.cancel.id))
                if work:
                    log.info("%s of round %s: %s", work.id.message_type, work.id.group_id, event.cancel.reason)
                    work.hooks.cancelled.set()
            elif event.HasField("run_over"):
                return event.run_over

    def _accept(self, assignment: pb.Assignment) -> None:
        key = _key(assignment.id)
        if key in self._active:
            return  # we came back to work that is under way
        loop = asyncio.get_running_loop()

        def report(step: Step) -> None:
            loop.call_soon_threadsafe(self._note_progress, assignment.id, step)

        work = _Work(assignment.id, assignment.content, Hooks(report=report, running=self._running))
        self._active[key] = work
        self._todo.put_nowait(work)

    def _note_progress(self, work_id: pb.AssignmentId, step: Step) -> None:
        if self._session.done():
            self._session.result().outbox.put_nowait(progress_of(work_id, step))

    def _leave_run(self) -> None:
        if self._run_id:
            self._host.leave()
        for work in self._active.values():
            work.hooks.cancelled.set()
        self._run_id, self._declaration, self._cache = "", None, BlobCache()

    # ---- work ----------------------------------------------------------------------------------------------

    async def _work_for_ever(self) -> None:
        while True:
            work = await self._todo.get()
            try:
                await self._do(work)
            except Exception:
                log.exception("%s of round %s could not be answered", work.id.message_type, work.id.group_id)
            finally:
                self._active.pop(_key(work.id), None)

    async def _do(self, work: _Work) -> None:
        content = await self._persist(work, lambda s: fetch_content(s.stub, s.metadata, work.content, self._cache))
        if content is None:
            return
        message = flower.instruction(
            content, run_id=work.id.run_id, dst=work.id.node_id, message_type=work.id.message_type,
            group_id=work.id.group_id,
        )  # fmt: skip
        CURRENT.set(work.hooks)
        try:
            reply = Reply.of(work.id, await asyncio.to_thread(self._answer, message, work.hooks))
        except CancelledError:
            return
        except Exception as e:
            log.exception("%s of round %s failed", work.id.message_type, work.id.group_id)
            reply = Reply(work.id, failure=pb.Failure(kind=type(e).__name__, reason=str(e)[:4000]))
        receipt = await self._persist(work, lambda s: send_reply(s.stub, s.metadata, reply))
        if receipt and receipt.outcome in (pb.Receipt.LATE, pb.Receipt.REJECTED):
            log.warning("the server did not take the reply of round %s: %s", work.id.group_id, receipt.reason)

    def _answer(self, message: Message, hooks: Hooks) -> Message:
        hooks.check()
        return self._host.work(message)

    async def _persist(self, work: _Work, step: Callable[[Session], Awaitable[T]]) -> T | None:
        """The step's result, tried again over new sessions until the work is cancelled."""
        pause_s = _BACKOFF_S[0]
        while not work.hooks.cancelled.is_set():
            session = await asyncio.shield(self._session)
            try:
                return await step(session)
            except grpc.aio.AioRpcError as e:
                if e.code() is grpc.StatusCode.NOT_FOUND:
                    return None  # the work it belonged to is over
                log.info("transfer of round %s interrupted (%s)", work.id.group_id, e.code().name.lower())
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, _BACKOFF_S[1])
        return None


def _key(work_id: pb.AssignmentId) -> bytes:
    return work_id.SerializeToString(deterministic=True)
