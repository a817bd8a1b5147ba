"""What a port reveals: failed handshakes and what clients are told, probes, reflection, log, files."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as reflect
from grpc_reflection.v1alpha import reflection_pb2_grpc

from fednc.client.link.channel import Credentials, open_channel
from fednc.client.link.link import Link, LinkConfig
from fednc.common.security.credentials import Role
from fednc.common.wire.protocol import PROTOCOL
from fednc.protos import federation_pb2 as pb
from support.local_servers import YEAR, IdleHost, Place, attending, invoke, make_place, serving, until

ATTEND = pb.DESCRIPTOR.services_by_name["Federation"].methods_by_name["Attend"]
FORBIDDEN = grpc.StatusCode.PERMISSION_DENIED


# ---- failed handshakes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Handshake:
    """A client or a server with wrong certificates, and what the client is told."""

    credentials: Callable[[Place, Place], Credentials | None]
    section: Callable[[Place, Place], dict[str, Any]]
    said: str


def _fitting(here: Place, other: Place) -> dict[str, Any]:
    return here.section(auth="mtls")


def _server_of(host: str) -> Callable[[Place, Place], dict[str, Any]]:
    def section(here: Place, other: Place) -> dict[str, Any]:
        here.authority.issue_server([host], YEAR, renew=True)
        return here.section()

    return section


def _node_as_server(here: Place, other: Place) -> dict[str, Any]:
    node = here.certificate("impostor")
    return here.section(cert=str(node.cert), key=str(node.key))


HANDSHAKES = {
    "plaintext": Handshake(lambda here, other: None, _fitting, "asks for TLS"),
    "no certificate": Handshake(
        lambda here, other: Credentials(ca=here.certificate("a").ca), _fitting, "asks for a certificate"
    ),
    "of another authority": Handshake(
        lambda here, other: replace(other.certificate("a"), ca=here.authority.server_folder / "ca.pem"),
        _fitting,
        "does not accept",
    ),
    "server's own": Handshake(
        lambda here, other: Credentials.from_folder(here.authority.server_folder), _fitting, "does not accept"
    ),
    "wrong authority": Handshake(
        lambda here, other: replace(here.certificate("a"), ca=other.authority.server_folder / "ca.pem"),
        _fitting,
        "was not issued by the authority in",
    ),
    "other host": Handshake(
        lambda here, other: here.certificate("a"), _server_of("elsewhere"), "not for this host"
    ),
    "node as server": Handshake(
        lambda here, other: here.certificate("a"), _node_as_server, "is not a server certificate"
    ),
    "server without TLS": Handshake(
        lambda here, other: here.certificate("a"), lambda here, other: {}, "speaks plaintext"
    ),
}


@pytest.mark.parametrize("case", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_failed_handshake_lets_nobody_in_and_is_explained(
    case: Handshake, place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_place(tmp_path / "other")
    section, credentials = case.section(place, other), case.credentials(place, other)

    async def scenario() -> None:
        async with serving(place.folder, section) as server, attending(server, "a", credentials) as link:
            await until(lambda: "no connection to" in caplog.text)
            assert not link.done(), "the operator may be fixing it: keep trying"
            assert server.names() == []

    with caplog.at_level(logging.INFO, "fednc.client"):
        asyncio.run(scenario())
    assert case.said in caplog.text


# ---- the log, probes, and what travels -----------------------------------------------------------------------


def test_a_client_that_keeps_calling_does_not_fill_the_log(place: Place) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            open_channel(server.address, place.certificate("a"), 5) as channel,
        ):
            request = pb.AttendRequest(protocol=PROTOCOL, name="b")
            for _ in range(50):
                assert (await invoke(channel, ATTEND, request=request))[0] is FORBIDDEN
            assert len(server.refused) == 1

    asyncio.run(scenario())


def test_health_answers_only_on_its_own_port(place: Place) -> None:
    async def scenario() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with serving(place.folder, place.section(health_port=port)) as server:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with open_channel(server.address, place.certificate("a"), 5) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("keys", "role", "expected"),
    [
        (None, Role.NODE, grpc.StatusCode.OK),
        ({}, Role.OPERATOR, grpc.StatusCode.UNIMPLEMENTED),
        ({"reflection": True}, Role.OPERATOR, grpc.StatusCode.OK),
        ({"reflection": True}, Role.NODE, FORBIDDEN),
    ],
    ids=["plaintext", "tls", "asked for", "asked for by a node"],
)
def test_reflection_is_off_unless_plaintext_or_switched_on(
    place: Place, keys: dict[str, Any] | None, role: Role, expected: grpc.StatusCode
) -> None:
    async def scenario() -> None:
        section = {} if keys is None else place.section(**keys)
        credentials = None if keys is None else place.certificate("x", role=role)
        async with (
            serving(place.folder, section) as server,
            open_channel(server.address, credentials, 5) as channel,
        ):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([reflect.ServerReflectionRequest(list_services="")]), timeout=5)
            with suppress(grpc.aio.AioRpcError):
                _ = [answer async for answer in call]
            assert await call.code() is expected

    asyncio.run(scenario())


def test_clients_are_not_told_where_the_server_keeps_its_keys(place: Place) -> None:
    told: list[pb.Welcome] = []

    class Listener(IdleHost):
        def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
            told.append(welcome)
            return super().prepare(welcome)

    async def scenario() -> None:
        async with serving(place.folder, place.section()) as server:
            config = LinkConfig(server=server.address, name="a", credentials=place.certificate("a"))
            task = asyncio.create_task(Link(config, Listener()).run())
            await until(lambda: told)
            task.cancel()

    asyncio.run(scenario())
    assert str(place.folder) not in told[0].run_json


def test_private_files_are_readable_by_their_owner_only(place: Place) -> None:
    place.certificate("a")
    place.token("a")
    private = [p for p in place.folder.rglob("*") if p.name in ("ca.key", "key.pem", "token", "issued.json")]
    folders = [p for p in place.folder.rglob("*") if p.is_dir() and (p / "key.pem").exists()]
    assert len(private) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
