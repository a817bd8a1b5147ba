"""What a client's owner can do: pause it, limit its hours and memory, try it without taking part."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from fednc.client.app.dry_run import dry_run
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link import resource_limits
from fednc.client.link.channel import open_channel
from fednc.client.link.link import Host, Link, LinkConfig
from fednc.client.link.resource_limits import Reserve, attend_for
from fednc.client.link.work_hooks import Hooks, WorkCancelledError
from fednc.common.config.run import parse_run
from fednc.common.errors import AddressError, RefusedError
from fednc.common.wire.failure_reasons import SENTENCES
from fednc.common.wire.protocol import ATTENDANCE_KEY, PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.server.link.nodes import NodeState
from support.local_servers import IdleHost, Place, Serving, attending, invoke, is_ready, serving, until
from support.working_nodes import PARTS, WorkingHost, digits_run, hand_out, node_of


async def attend(server: Serving, host: Host, hours: float) -> tuple[Link, asyncio.Task[pb.RunOver | None]]:
    link = Link(LinkConfig(server=server.address, name="a", once=True), host)
    return link, asyncio.create_task(attend_for(link, hours))


def test_a_paused_client_holds_its_work_and_gets_no_more(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            host = WorkingHost()
            link, task = await attend(server, host, hours=1)
            await until(is_ready(server, "a"))
            batch = hand_out(server, "a")
            await until(lambda: host.batches > 2)
            link.pause()
            await until(lambda: node_of(server, "a").state is NodeState.PAUSED)
            assert server.federation.roster.ready() == []
            held = host.batches
            await asyncio.sleep(0.1)
            assert host.batches <= held + 1
            link.resume()
            await until(is_ready(server, "a"))
            await until(lambda: host.batches > held + 2)
            host.done.set()
            await until(lambda: not batch.replies.empty())
            assert batch.replies.get_nowait().failure is None
            assert batch.replies.empty()  # sending the work again on its return changed nothing
            server.federation.finish("done", failed=False)
            await asyncio.wait_for(task, 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_work_on_hold_ends_when_cancelled_or_resumed(is_cancelled: bool) -> None:
    hooks = Hooks()
    hooks.running.clear()
    (hooks.cancelled if is_cancelled else hooks.running).set()
    with pytest.raises(WorkCancelledError) if is_cancelled else nullcontext():
        hooks.check()


def test_a_client_whose_hours_are_over_finishes_its_work_and_leaves(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            host = WorkingHost()
            _, task = await attend(server, host, hours=0.4 / 3600)
            await until(is_ready(server, "a"))
            batch = hand_out(server, "a")
            await until(lambda: node_of(server, "a").state is NodeState.LEAVING)
            assert not task.done()
            assert server.federation.roster.ready() == []
            host.done.set()
            assert await asyncio.wait_for(task, 5) is None
            assert batch.replies.get_nowait().failure is None
            await until(lambda: node_of(server, "a").state is NodeState.LOST)

            idle = IdleHost()
            _, task = await attend(server, idle, hours=0.3 / 3600)
            await until(is_ready(server, "a"))
            assert await asyncio.wait_for(task, 5) is None
            await until(lambda: node_of(server, "a").state is NodeState.LOST)
            assert [event.kind for event in server.events[-2:]] == ["leaving", "lost"]

    asyncio.run(scenario())


def test_a_client_short_of_memory_or_disk_refuses_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            _, task = await attend(server, Reserve(IdleHost(), min_free_gib=1.5), hours=1)
            await until(is_ready(server, "a"))
            monkeypatch.setattr(resource_limits, "free_bytes", lambda: {"memory": 9 << 30, "disk at /x": 1 << 30})
            batch = hand_out(server, "a")
            await until(lambda: not batch.replies.empty())
            failure = batch.replies.get_nowait().failure
            assert failure is not None
            assert (failure.kind, failure.reason) == ("below-reserve", SENTENCES["below-reserve"])
            assert "1.00 GiB of disk at /x" in caplog.text  # at the client
            assert is_ready(server, "a")()  # it asks again next time
            server.federation.finish("done", failed=False)
            await asyncio.wait_for(task, 5)

    free = resource_limits.free_bytes()
    assert set(free) >= {"memory"}
    assert all(value > 0 for value in free.values())
    asyncio.run(scenario())


@pytest.mark.parametrize("examples_per_batch", [64, 2000])
def test_a_dry_run_measures_and_leaves_no_trace(tmp_path: Path, examples_per_batch: int) -> None:
    run = digits_run().model_dump(mode="json") | {"train": {"batch": examples_per_batch}}

    async def scenario() -> None:
        federation_run = parse_run(run)
        async with serving(tmp_path, {}) as server:
            server.federation.run = federation_run
            server.federation.roster._parts = PARTS
            config = LinkConfig(server=server.address, name="a", part=pb.Part(index=1, of=PARTS))
            host = AppHost(ClientConfig(name="a", data="digits", device="cpu"), app)
            found = await dry_run(config, host)
            assert server.names() == []
            assert (found.part, found.run_id, found.device) == (f"1/{PARTS}", "run", "cpu")
            assert found.batch == min(examples_per_batch, found.examples)
            assert sum(found.class_counts) == found.examples > 0
            assert found.examples_per_s == pytest.approx(found.batch / found.batch_s)
            assert found.memory_bytes > 10 << 20
            assert json.dumps(found.to_json())
            # name and part are still free, and the connected client is not disturbed
            async with attending(server, "a", None):
                await until(is_ready(server, "a"))
                assert node_of(server, "a").part is not None
                await dry_run(config, host)
                assert is_ready(server, "a")()
                assert server.names() == ["a"]

    asyncio.run(scenario())


def test_a_dry_run_is_refused_as_the_client_would_be(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, place.section()) as server:
            config = LinkConfig(server=server.address, name="b", credentials=place.certificate("a"))
            with pytest.raises(RefusedError, match="cannot be used as 'b'"):
                await dry_run(config, IdleHost())
        with pytest.raises(AddressError, match="no answer"):
            await dry_run(replace(config, server="127.0.0.1:1"), IdleHost())

    asyncio.run(scenario())


def test_the_attendance_of_a_dry_run_allows_no_other_call(place: Place) -> None:
    """It can read the run file and nothing else."""

    async def scenario() -> None:
        async with serving(place.folder, {}) as server, open_channel(server.address, None, 5) as channel:
            node = server.federation.admit(pb.AttendRequest(protocol=PROTOCOL, name="a", dry_run=True))
            assert server.federation.roster.by_attendance(node.attendance) is None
            service = pb.DESCRIPTOR.services_by_name["Federation"]
            for method in service.methods:
                if method.name != "Attend":
                    message, shown = GetMessageClass(method.input_type)(), (ATTENDANCE_KEY, node.attendance)
                    code, _ = await invoke(channel, method, shown, request=message)
                    assert code is grpc.StatusCode.ABORTED

    asyncio.run(scenario())
