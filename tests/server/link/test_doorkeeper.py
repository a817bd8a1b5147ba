"""A node that is shut out stays out across restarts of the server until an operator readmits it."""

from __future__ import annotations

import asyncio
import errno
import json
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from fednc.client.link.channel import open_channel
from fednc.common.errors import ConfigError
from fednc.common.wire.protocol import PROTOCOL
from fednc.ops.operator_client import OperatorLink
from fednc.protos import federation_pb2 as pb
from fednc.server.access import bans
from fednc.server.access.bans import BanList
from fednc.server.link.nodes import NodeState
from fednc.server.operations.commands import ReadmitNode
from fednc.server.storage.events import DiskProblem, NodeReadmitted
from support.heard_events import of_kind
from support.local_servers import Serving, serving, until
from support.raw_node import RawNode, attending_by_hand

OPEN = {"auth": "none", "quarantine_after": 2}


async def send_rubbish(node: RawNode, times: int) -> None:
    for _ in range(times):
        with pytest.raises(grpc.aio.AioRpcError):
            await node.declare(pb.Declaration(pid=1 << 30))


async def attend(server: Serving, name: str) -> tuple[grpc.StatusCode, str]:
    """How an attempt to join ends."""
    async with open_channel(server.address, None, 5) as channel:
        call = channel.unary_stream("/fednc.v1.Federation/Attend")(
            pb.AttendRequest(protocol=PROTOCOL, name=name, instance=b"x").SerializeToString()
        )
        with suppress(grpc.aio.AioRpcError):
            await call.read()
            return grpc.StatusCode.OK, ""
        return await call.code(), await call.details()


def test_quarantine_survives_a_restart_and_ends_when_an_operator_lifts_it(tmp_path: Path) -> None:
    async def first() -> None:
        async with serving(tmp_path, OPEN) as server:
            server.federation.door.keep_in(tmp_path)
            async with attending_by_hand(server.federation, server.listening.port, "bad") as bad:
                await send_rubbish(bad, 2)
                assert bad.node.state is NodeState.QUARANTINED

    async def second() -> None:
        async with serving(tmp_path, OPEN) as server:
            server.federation.door.keep_in(tmp_path)
            code, reason = await attend(server, "bad")
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "in quarantine until an operator readmits it: 2 of its messages were rejected" in reason
            assert server.names() == []
            assert (await attend(server, "good"))[0] is grpc.StatusCode.OK
            operator = OperatorLink(server.address)
            assert list((await operator.status()).quarantined) == ["bad"]
            with pytest.raises(ConfigError, match="'good' is neither dropped nor quarantined; these are: bad"):
                await operator.ask(ReadmitNode("good"))
            await operator.ask(ReadmitNode("bad"))
            assert [e.operator for e in of_kind(NodeReadmitted, server.events)] == ["an operator"]
            async with attending_by_hand(server.federation, server.listening.port, "bad") as bad:
                await send_rubbish(bad, 1)
                assert bad.node.state is NodeState.READY, "what was counted before has been forgiven"

    asyncio.run(first())
    assert list(json.loads((tmp_path / "quarantine.json").read_text())) == ["bad"]
    asyncio.run(second())
    assert json.loads((tmp_path / "quarantine.json").read_text()) == {}


def test_a_node_that_is_readmitted_starts_without_strikes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, OPEN) as server:
            async with attending_by_hand(server.federation, server.listening.port, "bad") as bad:
                await send_rubbish(bad, 2)
                await OperatorLink(server.address).ask(ReadmitNode("bad"))
            async with attending_by_hand(server.federation, server.listening.port, "bad") as bad:
                assert (bad.node.state, bad.node.rejections, bad.node.problem) == (NodeState.READY, 0, "")

    asyncio.run(scenario())


def test_work_handed_out_while_a_paused_node_was_away_reaches_it_when_it_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            serving(tmp_path, OPEN) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as first,
        ):
            node = first.node
            server.federation.depart(node, node.attendance)
            work = first.give_work()
            call = first.stub.Attend(pb.AttendRequest(protocol=PROTOCOL, name="a", instance=b"a"))
            again = RawNode(server.federation, first.channel, "a", (await call.read()).welcome, call)
            await again.declare(pb.Declaration(examples=10, standing=pb.Declaration.PAUSED))
            await again.declare(pb.Declaration(examples=10))
            assert (await asyncio.wait_for(call.read(), 2)).assignment.id == work.id
            call.cancel()

    asyncio.run(scenario())


def test_on_a_full_disk_a_quarantine_holds_but_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        async with serving(tmp_path, OPEN) as server:
            server.federation.door.keep_in(tmp_path)
            async with attending_by_hand(server.federation, server.listening.port, "bad") as bad:
                monkeypatch.setattr(bans, "write_atomically", full)
                await send_rubbish(bad, 2)
                await until(lambda: of_kind(DiskProblem, server.events))
                assert (await attend(server, "bad"))[0] is grpc.StatusCode.PERMISSION_DENIED
                with pytest.raises(Exception, match="it will be lost at a restart: No space left"):
                    await OperatorLink(server.address).ask(ReadmitNode("bad"))
                assert (await attend(server, "bad"))[0] is grpc.StatusCode.OK

    asyncio.run(scenario())


def test_old_files_with_only_a_list_of_names_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "dropped.json").write_text('["a", "b"]')
    names = BanList()
    names.keep_in(tmp_path / "dropped.json")
    names.lift("a")
    assert list(names) == ["b"]
    assert names.reason("b") is not None
