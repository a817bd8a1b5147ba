"""An authority, servers and clients on this machine, for the tests of identity. Real certificates, free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from fednc.client.link.channel import Credentials
from fednc.client.link.link import Host, Link, LinkConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import RefusedError
from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from fednc.protos import federation_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import NodeState
from fednc.server.listener import Listening, drop_invalid, make_server
from fednc.server.rounds.control import RunControl
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import CallRefused, Event
from support.heard_events import of_kind

YEAR = timedelta(days=365)


@dataclass
class Place:
    """An authority with a server certificate for 127.0.0.1."""

    authority: Authority
    folder: Path

    def section(self, **keys: Any) -> dict[str, Any]:
        """`[server]` of a server with this authority's certificates."""
        return {"certs": str(self.authority.server_folder), **keys}

    def certificate(self, name: str, role: Role = Role.NODE, lifetime: timedelta = YEAR) -> Credentials:
        return Credentials.from_folder(self.authority.issue_certificate(Holder(role, name), lifetime))

    def token(self, name: str, role: Role = Role.NODE, lifetime: timedelta = YEAR) -> Credentials:
        holder = Holder(role, name)
        return Credentials.from_folder(
            self.authority.write_token(holder, self.authority.issue_token(holder, lifetime))
        )

    def credential(self, auth: str, name: str, **options: Any) -> Credentials:
        return {"mtls": self.certificate, "token": self.token}[auth](name, **options)


def make_place(folder: Path, host: str = "127.0.0.1") -> Place:
    authority = Authority.create(folder / "ca", "test")
    authority.issue_server([host], YEAR)
    return Place(authority, folder)


@dataclass
class Serving:
    """A running server and its log."""

    federation: Federation
    listening: Listening
    events: list[Event]
    control: RunControl

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listening.port}"

    @property
    def refused(self) -> list[CallRefused]:
        return of_kind(CallRefused, self.events)

    def names(self) -> list[str]:
        return [node.name for node in self.federation.roster.nodes()]


@asynccontextmanager
async def serving(folder: Path, section: dict[str, Any], **tables: Any) -> AsyncIterator[Serving]:
    """A server whose run file has `section` as [server] and these other tables."""
    run = parse_run({**tables, "server": {"listen": "127.0.0.1:0", **section}})
    log, events = EventLog(), list[Event]()
    log.listen(events.append)
    federation = Federation("run", run, folder / "spool", log)
    control = RunControl()
    listening = await make_server(federation, run.server.listen, control=control)
    await listening.start()
    credential_check = asyncio.create_task(drop_invalid(federation, listening.security.authenticator))
    try:
        yield Serving(federation, listening, events, control)
    finally:
        credential_check.cancel()
        await listening.stop(0)


class IdleHost:
    """Has one example and is never given work."""

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        return pb.Declaration(examples=1, device="cpu")

    def examples_having(self) -> list[int]:
        return []

    def work(self, message: Message) -> Message:
        raise AssertionError

    def leave(self) -> None:
        pass


@asynccontextmanager
async def attending(
    server: Serving, name: str, credentials: Credentials | None, host: Host | None = None
) -> AsyncIterator[asyncio.Task[Any]]:
    link = Link(LinkConfig(server=server.address, name=name, credentials=credentials), host or IdleHost())
    task = asyncio.create_task(link.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, RefusedError):
            await task


async def until(condition: Callable[[], Any], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def is_ready(server: Serving, name: str) -> Callable[[], bool]:
    return lambda: any(n.name == name and n.state is NodeState.READY for n in server.federation.roster.nodes())


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def invoke(
    channel: grpc.aio.Channel, method: MethodDescriptor, *metadata: tuple[str, Any], request: Any = None
) -> tuple[grpc.StatusCode, str]:
    """How one call of any method ends."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    path = f"/{method.containing_service.full_name}/{method.name}"
    message = (request or GetMessageClass(method.input_type)()).SerializeToString()
    # A stream sends nothing: grpc.aio reports INTERNAL if a refusal arrives during a write.
    sent = silence() if method.client_streaming else message
    call = getattr(channel, kind)(path)(sent, metadata=metadata, timeout=5)
    return await call.code(), await call.details()
