"""One client's link to a server: attends, declares, takes work, and reconnects when the connection breaks.

Runs on an event loop; the app, which blocks while it reads data and trains, runs in a worker thread. Knows no task
and no method, and of the app only `Host`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import grpc
from flwr.app import Message

from fednc.client.link.attendance import Attendance, read_event
from fednc.client.link.channel import Credentials, open_channel
from fednc.client.link.connection_errors import explain, final_reason, is_expired_refusal
from fednc.client.link.credential_renewal import RenewableCredentials
from fednc.client.link.http_proxy import proxy_on_the_way
from fednc.client.link.reconnect_messages import ReconnectLog
from fednc.client.link.transfer import Stub
from fednc.client.link.worker import BACKOFF_S, BeforeDownload, Worker, accept_any_size, jittered
from fednc.common.errors import RefusedError
from fednc.common.peer_text import LONG_TEXT, one_line
from fednc.common.wire.failure_reasons import refusal_of
from fednc.common.wire.protocol import PROTOCOL
from fednc.protos import federation_pb2 as pb

log = logging.getLogger("fednc.client")

_FINAL = (
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_FIRST_LOG_PAUSE_S = 10.0  # between two lines on the same lost connection; grows
_ATTENDED_S = 1.0  # after an attendance of this length reconnect at once


class Host(Protocol):
    """What runs inside the link."""

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Prepare for a run; blocks. A run that was prepared before is over, but its data may be used again.

        Raises FedncError: this client cannot take part.
        """

    def examples_having(self) -> Sequence[int]:
        """Training examples that have each class, after `prepare`; not sent. Empty for a foreign app."""

    def work(self, message: Message) -> Message:
        """Answer one instruction; blocks."""

    def leave(self) -> None:
        """The run is over."""


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """How to reach the server, under which name, and what to tell it.

    Attributes:
        credentials: None is plaintext.
        part: the part of a simulated split that the user chose.
        tasks, methods: what is installed, as "name/version".
        app: name and version of a foreign Flower app; empty: fednc's own.
        app_code: fingerprint of its code.
        liveness_s: how long the server may be silent, unless it names another time.
        once: leave after one run.
        direct: use no proxy.
        before_download: called with each assignment and the bytes it brings; raises to refuse it.
        admit: called with the bytes that are about to be downloaded; raises where these are too many.
    """

    server: str
    name: str
    credentials: Credentials | None = None
    part: pb.Part | None = None
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    app: str = ""
    app_code: str = ""
    liveness_s: float = 5.0
    once: bool = False
    direct: bool = False
    before_download: BeforeDownload = accept_any_size
    admit: Callable[[int], None] = lambda _size: None

    def request(self, instance: bytes = b"", *, dry_run: bool = False) -> pb.AttendRequest:
        """What opens an attendance; `instance` distinguishes this process from others of the same name."""
        return pb.AttendRequest(
            protocol=PROTOCOL,
            name=self.name,
            software=version("fednc"),
            tasks=self.tasks,
            methods=self.methods,
            part=self.part,
            app=self.app,
            instance=instance,
            dry_run=dry_run,
            app_code=self.app_code,
        )


class Link:
    """One client's link to one server; owns the worker and the attendance under way."""

    def __init__(self, config: LinkConfig, host: Host) -> None:
        self._config, self._host = config, host
        self._instance = secrets.token_bytes(8)
        self._worker = Worker(host.work, config.before_download, config.admit, packs=bool(config.app))
        self._attendance: Attendance | None = None  # the one under way
        self._run_id = ""
        self._declaration: pb.Declaration | None = None
        self._standing = pb.Declaration.READY
        self._in_series = False  # this server has gone on from one run to another
        self._credentials = RenewableCredentials(config.credentials)
        self._proxy = proxy_on_the_way(config.server, direct=config.direct)
        self._reconnect_log = ReconnectLog(config.server, _FIRST_LOG_PAUSE_S)

    async def run(self) -> pb.RunOver:
        """Attend one run (`once`), or run after run.

        Raises:
            RefusedError: the server does not accept this client.
            FedncError: this client cannot take part in the run.
        """
        worker = asyncio.create_task(self._worker.work_for_ever())
        try:
            while True:
                over = await self._attend_patiently()
                log.info("run %s is over: %s", self._run_id, one_line(over.reason, LONG_TEXT))
                self._leave_run()
                self._in_series = False
                if self._config.once:
                    return over
                self._reconnect_log.wait_for_next_run()
        finally:
            self._worker.cancel_all()
            worker.cancel()

    # ---- pause, resume, leave --------------------------------------------------------------------------------

    def pause(self) -> None:
        """Put work on hold at its next batch, take no more, and tell the server."""
        log.info("paused: work holds at its next batch")
        self._worker.hold()
        self._stand(pb.Declaration.PAUSED)

    def resume(self) -> None:
        """Continue after `pause`."""
        log.info("resumed")
        self._worker.go_on()
        self._stand(pb.Declaration.READY)

    async def drain(self) -> None:
        """Take no more work; return when the current work is finished, or cannot be."""
        self._worker.go_on()
        self._stand(pb.Declaration.LEAVING)
        if self._attendance:
            await self._attendance.flush()  # the server must know before this client leaves
        await self._worker.drain()

    def _stand(self, standing: pb.Declaration.Standing) -> None:
        self._standing = standing
        if self._attendance and self._declaration and self._declaration.standing != standing:
            self._declaration.standing = standing
            self._attendance.announce(self._declaration)

    # ---- attending -----------------------------------------------------------------------------------------

    async def _attend_patiently(self) -> pb.RunOver:
        """Attend, and reconnect after broken connections, with growing and jittered pauses."""
        pause_s = BACKOFF_S[0]
        while True:
            started = time.monotonic()
            try:
                return await self._attend()
            except grpc.aio.AioRpcError as e:
                if e.code() in _FINAL:
                    raise RefusedError(final_reason(e, self._config.credentials, self._proxy)) from e
                if is_expired_refusal(e, self._config.credentials):
                    raise RefusedError("this client's certificate has expired; the operator can renew it") from e
                self._reconnect_log.note(explain(e, self._config.credentials, self._proxy))
            if time.monotonic() - started > _ATTENDED_S:
                pause_s = BACKOFF_S[0]  # it was a long attendance, not a failed attempt
            await asyncio.sleep(jittered(pause_s))
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _attend(self) -> pb.RunOver:
        """One attendance, from its beginning until the run is over. Raises AioRpcError where it breaks."""
        config = self._config
        opened = open_channel(config.server, self._credentials, config.liveness_s, direct=config.direct)
        async with opened as channel:
            stub = Stub(channel)
            events = stub.Attend(config.request(self._instance))
            try:
                welcome = (await read_event(events)).welcome
                self._reconnect_log.connected()
                attendance = Attendance(stub, events, welcome, config.liveness_s)
                sending = asyncio.create_task(attendance.send_queued())
                try:
                    await (self._declare_or_stay if self._in_series else self._declare)(attendance, welcome)
                    self._connect(attendance)
                    return await self._listen(attendance)
                finally:
                    sending.cancel()
            finally:
                events.cancel()
                self._disconnect()

    async def _declare(self, attendance: Attendance, welcome: pb.Welcome) -> None:
        """Prepare for the run, unless it is the same as before, and declare what this client holds."""
        if welcome.run_id != self._run_id:
            self._leave_run()
            self._run_id = welcome.run_id
        if self._declaration is None:
            log.info("run %s at %s: loading data", welcome.run_id, self._config.server)
            try:
                self._declaration = await asyncio.to_thread(self._host.prepare, welcome)
            except Exception as e:  # the server must hear about every failure
                log.error("this client cannot take part: %s: %s", type(e).__name__, e)  # details are not sent
                await attendance.declare(pb.Declaration(problem=refusal_of(e), run_id=welcome.run_id))
                raise
        self._declaration.standing, self._declaration.run_id = self._standing, welcome.run_id
        await attendance.declare(self._declaration)
        holds = f"{self._declaration.examples} examples on " if self._declaration.examples else ""
        log.info("ready: %s%s", holds, self._declaration.device)

    def _connect(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self._worker.connect(attendance)
        self._stand(self._standing)  # it may have changed while the declaration was on its way
        attendance.hear()  # loading data may have taken long

    def _disconnect(self) -> None:
        self._attendance = None
        self._worker.disconnect()

    async def _listen(self, attendance: Attendance) -> pb.RunOver:
        """Do what the server says, until it says that the run is over."""
        while True:
            event = await attendance.next_event()
            if event.HasField("assignment"):
                self._worker.accept(event.assignment)
            elif event.HasField("cancel"):
                self._worker.cancel(event.cancel)
            elif event.HasField("welcome"):
                if self._config.once:
                    return pb.RunOver(reason="the server goes on to its next run, and this client leaves")
                await self._go_on_to(attendance, event.welcome)
            elif event.HasField("run_over"):
                return event.run_over

    async def _go_on_to(self, attendance: Attendance, welcome: pb.Welcome) -> None:
        """The server's next run begins."""
        self._in_series = True
        self._worker.forget_run()
        await self._worker.drain()  # its last batch may still be under way
        self._run_id, self._declaration = welcome.run_id, None
        await self._declare_or_stay(attendance, welcome)
        attendance.hear()

    async def _declare_or_stay(self, attendance: Attendance, welcome: pb.Welcome) -> None:
        """As `_declare`, but a client that cannot take part in this run stays for the run after it."""
        try:
            await self._declare(attendance, welcome)
        except grpc.aio.AioRpcError:
            raise  # the connection, not the run
        except Exception:  # the server and the log know about it
            self._host.leave()

    def _leave_run(self) -> None:
        if self._run_id:
            self._host.leave()
        self._worker.forget_run()
        self._run_id, self._declaration = "", None
