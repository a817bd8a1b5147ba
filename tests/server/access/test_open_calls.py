"""Open calls and their identity: streams end with it, with a limit per identity and one dry run per name."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from fednc.client.link.channel import open_channel
from fednc.common.errors import RefusedError
from fednc.common.security.credentials import Role
from fednc.common.wire.protocol import PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2
from fednc.protos.federation_pb2_grpc import FederationStub
from fednc.protos.operator_pb2_grpc import OperatorStub
from fednc.server.access import open_calls as calls
from fednc.server.link.nodes import Roster
from support.local_servers import Place, serving, until

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


def dry_run(name: str, instance: bytes = b"1") -> pb.AttendRequest:
    return pb.AttendRequest(protocol=PROTOCOL, name=name, dry_run=True, instance=instance)


@pytest.mark.parametrize("auth", ["mtls", "token"])
def test_a_revoked_operators_watch_and_a_revoked_nodes_dry_run_end(place: Place, auth: str) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section(auth=auth)) as server,
            open_channel(server.address, place.credential(auth, "ops", role=Role.OPERATOR), 5) as operator,
            open_channel(server.address, place.credential(auth, "a"), 5) as node,
            open_channel(server.address, place.credential(auth, "b"), 5) as other,
        ):
            watch = OperatorStub(operator).Watch(operator_pb2.WatchRequest(every_s=60))
            rehearsal = FederationStub(node).Attend(dry_run("a"))
            staying = FederationStub(other).Attend(dry_run("b"))
            for stream in (watch, rehearsal, staying):
                await stream.read()
            place.authority.revoke("ops")
            place.authority.revoke("a")
            assert await asyncio.wait_for(watch.code(), 3) is UNAUTHENTICATED
            assert await asyncio.wait_for(rehearsal.code(), 3) is UNAUTHENTICATED
            assert "revoked" in await rehearsal.details() or "removed from" in await rehearsal.details()
            await until(lambda: len(server.federation.calls) == 1)
            assert not staying.done()
            assert server.federation.calls.refused == {"UNAUTHENTICATED": 2}

    asyncio.run(scenario())


def test_one_dry_run_of_a_name_at_a_time_and_another_after_it(place: Place) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            open_channel(server.address, place.certificate("a"), 5) as channel,
        ):
            first = FederationStub(channel).Attend(dry_run("a", b"1"))
            await first.read()
            second = FederationStub(channel).Attend(dry_run("a", b"2"))
            assert await second.code() is grpc.StatusCode.ALREADY_EXISTS
            first.cancel()
            await until(lambda: not len(server.federation.calls))
            third = FederationStub(channel).Attend(dry_run("a", b"2"))
            assert (await third.read()).HasField("welcome")

    asyncio.run(scenario())


def test_a_dry_run_that_reconnects_replaces_itself() -> None:
    roster = Roster()
    first = roster.rehearse("a", b"1", None)
    again = roster.rehearse("a", b"1", None)
    assert first.outbox.get_nowait() is None, "the first connection is told to end"
    roster.end_rehearsal(first)
    with pytest.raises(RefusedError, match="in progress"):
        roster.rehearse("a", b"2", None)
    roster.end_rehearsal(again)
    roster.rehearse("a", b"2", None)


def test_one_identity_has_a_bounded_number_of_calls_over_all_its_connections(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALLS_PER_IDENTITY", 3)

    async def scenario() -> None:
        credential = place.certificate("ops", role=Role.OPERATOR)
        async with (
            serving(place.folder, place.section()) as server,
            open_channel(server.address, credential, 5) as one,
            open_channel(server.address, credential, 5) as two,
        ):
            watches = [OperatorStub(c).Watch(operator_pb2.WatchRequest()) for c in (one, one, two)]
            for watch in watches:
                await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await OperatorStub(two).Status(operator_pb2.StatusRequest())
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            watches[0].cancel()
            await until(lambda: len(server.federation.calls) == 2)
            await OperatorStub(two).Status(operator_pb2.StatusRequest())

    asyncio.run(scenario())
