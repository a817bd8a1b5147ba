"""Who may call the server: every call of the service, and callers whose credential is no longer valid."""

from __future__ import annotations

import asyncio
import hmac
import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from flwr.app import RecordDict
from google.protobuf.descriptor import MethodDescriptor

from fednc.client.link.channel import Credentials, open_channel
from fednc.common import flower_adapter
from fednc.common.errors import RefusedError
from fednc.common.security.credentials import Role
from fednc.common.wire.protocol import ATTENDANCE_KEY, PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.protos.federation_pb2_grpc import FederationStub
from fednc.server.link.assignments import Content
from fednc.server.link.federation import NODE_LOST, Batch, Federation, Work
from fednc.server.link.nodes import NodeState
from support.local_servers import Place, attending, invoke, is_ready, serving, until

SERVICE = pb.DESCRIPTOR.services_by_name["Federation"]
METHODS, ATTEND = list(SERVICE.methods), SERVICE.methods_by_name["Attend"]
UNAUTHENTICATED, FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


# ---- every call --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_call_asks_for_a_token(place: Place, method: MethodDescriptor) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section(auth="token")) as server,
            open_channel(server.address, replace(place.token("a"), token=None), 5) as nobody,
            open_channel(server.address, place.token("ops", role=Role.OPERATOR), 5) as operator,
        ):
            assert await invoke(nobody, method) == (
                UNAUTHENTICATED,
                "no token was presented; get one with `fednc certs token`",
            )
            assert (await invoke(operator, method))[0] is FORBIDDEN
            assert server.names() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_call_asks_for_a_nodes_certificate(place: Place, method: MethodDescriptor) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            open_channel(server.address, replace(place.certificate("a"), cert=None), 5) as nobody,
            open_channel(server.address, place.certificate("ops", role=Role.OPERATOR), 5) as operator,
        ):
            assert (await invoke(nobody, method))[
                0
            ] is grpc.StatusCode.UNAVAILABLE  # the handshake fails, so there is no reason
            assert (await invoke(operator, method))[0] is FORBIDDEN
            assert server.names() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("auth", ["mtls", "token"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_an_attendance_cannot_be_used_by_another_node(place: Place, method: MethodDescriptor, auth: str) -> None:
    async def scenario() -> None:
        mine, other = place.credential(auth, "a"), place.credential(auth, "b")
        async with serving(place.folder, place.section(auth=auth)) as server, attending(server, "a", mine):
            await until(is_ready(server, "a"))
            attendance = (ATTENDANCE_KEY, server.federation.roster.nodes()[0].attendance)
            request = pb.AttendRequest(protocol=PROTOCOL, name="a") if method is ATTEND else None
            async with open_channel(server.address, other, 5) as stranger:
                code, reason = await invoke(stranger, method, attendance, request=request)
            assert (code, reason) == (FORBIDDEN, "this credential belongs to node 'b'; it cannot be used as 'a'")
            assert is_ready(server, "a")()
            assert [event.reason for event in server.refused] == [reason]

    asyncio.run(scenario())


def test_a_node_whose_attendance_is_over_is_told_to_join_again(place: Place) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            open_channel(server.address, place.certificate("a"), 5) as channel,
        ):
            ends = [(await invoke(channel, m, (ATTENDANCE_KEY, b"old")))[0] for m in METHODS if m is not ATTEND]
            assert set(ends) == {grpc.StatusCode.ABORTED}  # not final, unlike a refusal

    asyncio.run(scenario())


# ---- admitted nodes, and when that ends ----------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["mtls", "token"])
def test_a_node_that_is_revoked_while_connected_is_dropped_with_its_work(place: Place, auth: str) -> None:
    async def scenario() -> None:
        first, second = place.credential(auth, "a"), place.credential(auth, "b")
        async with (
            serving(place.folder, place.section(auth=auth)) as server,
            attending(server, "a", first) as dropped,
            attending(server, "b", second),
        ):
            await until(lambda: is_ready(server, "a")() and is_ready(server, "b")())
            batch = open_work(server.federation, "a")
            place.authority.revoke("a")
            with pytest.raises(RefusedError, match=r"of node 'a' is revoked"):
                await asyncio.wait_for(dropped, 2)
            failed = batch.replies.get_nowait().failure
            assert failed is not None
            assert (failed.code, "revoked" in failed.reason) == (NODE_LOST, True)
            assert is_ready(server, "b")()
            assert [node.state for node in server.federation.roster.nodes()] == [NodeState.LOST, NodeState.READY]
            assert server.refused[0].peer.startswith("ipv4:127.0.0.1:")

    asyncio.run(scenario())


def open_work(federation: Federation, name: str) -> Batch:
    """Give the node `name` work that it never answers."""
    node = next(n for n in federation.roster.nodes() if n.name == name)
    work_id = pb.AssignmentId(run_id="run", group_id="1", message_type="train", node_id=node.node_id)
    instruction = flower_adapter.instruction(
        RecordDict(), run_id="run", dst=node.node_id, message_type="train", group_id="1"
    )
    batch = Batch()
    batch.works.append(Work(work_id, node, instruction, Content(pb.Manifest()), batch))
    federation._works[("run", "1", "train", node.node_id, 0, 0)] = batch.works[0]
    return batch


def test_a_download_ends_with_the_attendance_that_asked_for_it(place: Place) -> None:
    async def scenario() -> None:
        credentials, digest = place.certificate("a"), bytes(16)
        async with (
            serving(place.folder, place.section()) as server,
            attending(server, "a", credentials) as link,
            open_channel(server.address, credentials, 5) as channel,
        ):
            await until(is_ready(server, "a"))
            server.federation.blobs.hold({digest: bytes(64 << 20)})  # more than the connection buffers unread
            attendance = server.federation.roster.nodes()[0].attendance
            call = FederationStub(channel).Download(
                pb.DownloadRequest(digests=[digest]), metadata=[(ATTENDANCE_KEY, attendance)]
            )
            chunks = aiter(call)
            await anext(chunks)
            place.authority.revoke("a")
            with pytest.raises(RefusedError):
                await asyncio.wait_for(link, 2)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                _ = [chunk async for chunk in chunks]
            assert cut.value.code() is UNAUTHENTICATED

    asyncio.run(scenario())


@pytest.mark.parametrize("auth", ["mtls", "token"])
def test_a_connection_does_not_outlive_its_credential(place: Place, auth: str) -> None:
    async def scenario() -> None:
        brief = place.credential(auth, "a", lifetime=timedelta(seconds=2.5))
        async with (
            serving(place.folder, place.section(auth=auth)) as server,
            attending(server, "a", brief) as link,
        ):
            await until(is_ready(server, "a"))
            with pytest.raises(RefusedError, match=r"of node 'a' expired at|certificate has expired"):
                await asyncio.wait_for(link, 4)
            assert "expired" in server.refused[0].reason

    asyncio.run(scenario())


@pytest.mark.parametrize("auth", ["mtls", "token"])
def test_expired_revoked_and_wrong_credentials_are_refused_for_good(place: Place, auth: str) -> None:
    async def scenario() -> None:
        credentials = {
            "expired": place.credential(auth, "old", lifetime=-timedelta(hours=1)),
            "revoked": keep(place.credential(auth, "bad"), place.folder / "kept"),
            "cannot be used as": place.credential(auth, "else"),
        }
        place.authority.revoke("bad")
        async with serving(place.folder, place.section(auth=auth)) as server:
            for name, (sign, credential) in zip(("old", "bad", "a"), credentials.items(), strict=True):
                async with attending(server, name, credential) as link:
                    with pytest.raises(RefusedError, match=sign) as refused:
                        await asyncio.wait_for(link, 5)
                assert refused.value.exit_code == 6
            assert server.names() == []

    asyncio.run(scenario())


def keep(credentials: Credentials, folder: Path) -> Credentials:
    """A copy that `revoke` does not delete."""
    return Credentials.from_folder(shutil.copytree(credentials.ca.parent, folder))


def test_a_name_can_be_issued_to_again_after_it_was_revoked(place: Place) -> None:
    async def scenario() -> None:
        before = keep(place.certificate("a"), place.folder / "before")
        place.authority.revoke("a")
        after = place.certificate("a")
        async with serving(place.folder, place.section()) as server:
            async with attending(server, "a", before) as link:
                with pytest.raises(RefusedError, match="revoked"):
                    await asyncio.wait_for(link, 5)
            async with attending(server, "a", after):
                await until(is_ready(server, "a"))

    asyncio.run(scenario())


def test_a_token_that_was_never_issued_or_was_removed_is_unknown(place: Place) -> None:
    async def scenario() -> None:
        issued = place.token("a")
        assert issued.token
        forged = replace(issued, token=place.folder / "forged")
        forged.token.write_text(issued.token.read_text()[:-4] + "AAAA")
        async with serving(place.folder, place.section(auth="token")) as server:
            async with attending(server, "a", forged) as link:
                with pytest.raises(RefusedError, match="unknown token"):
                    await asyncio.wait_for(link, 5)
            async with attending(server, "a", issued) as link:
                await until(is_ready(server, "a"))
                (place.authority.server_folder / "tokens.json").write_text("[]")
                with pytest.raises(RefusedError, match="removed from the server's list"):
                    await asyncio.wait_for(link, 2)

    asyncio.run(scenario())


def test_tokens_are_compared_in_constant_time_and_kept_as_hashes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = place.token("a")
    assert credentials.token
    token, kept = credentials.token.read_bytes(), (place.authority.server_folder / "tokens.json").read_text()
    everything = b"".join(path.read_bytes() for path in place.authority.server_folder.iterdir())
    assert token.rpartition(b".")[2] not in everything
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))

    async def scenario() -> None:
        async with (
            serving(place.folder, place.section(auth="token")) as server,
            attending(server, "a", credentials),
        ):
            await until(is_ready(server, "a"))

    asyncio.run(scenario())
    assert set(compared) == {json.loads(kept)[0]["sha256"]}
