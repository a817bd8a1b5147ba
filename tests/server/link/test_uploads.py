"""What a client may send: turns, shares and forms of uploads, what is refused, and which nodes are shut out."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.methods import registry
from fednc.common.wire import messages, records, update_codec
from fednc.common.wire.messages import EVALUATE, HELLO, MEMORY, TRAIN
from fednc.common.wire.protocol import PROTOCOL
from fednc.protos import federation_pb2 as pb
from fednc.server.link.heartbeat import drop_silent
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.nodes import NodeState
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.link.upload_budget import Budget
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import NodeLost, NodeQuarantined
from support.heard_events import of_kind
from support.local_servers import until
from support.raw_node import RawNode, attending_by_hand, data_frames, data_of, end_frame
from support.upload_calls import COMMITTED, MIB, content, in_loop, place, receipt_of

# ---- turns and shares --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    leaving=st.sets(st.integers(0, 19), max_size=5),
    total=st.integers(1, 20),
)
def test_shares_are_given_in_turn_and_never_exceed_the_budget(
    sizes: list[int], leaving: set[int], total: int
) -> None:
    async def run() -> None:
        budget, served, held = Budget(total), list[int](), dict[int, int]()

        async def come(index: int) -> None:
            await budget.acquire(sizes[index])
            served.append(index)
            held[index] = sizes[index]
            assert sum(held.values()) <= budget.used_bytes
            assert budget.used_bytes <= total or budget.used_bytes in sizes
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            budget.release(held.pop(index))

        tasks = [asyncio.create_task(come(index)) for index in range(len(sizes))]
        await asyncio.sleep(0)
        gone = [index for index in leaving if index < len(sizes) and index not in served]
        for index in gone:
            tasks[index].cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        waiting = [index for index in served if sizes[index]]
        assert waiting == sorted(waiting), "somebody was overtaken"
        assert set(served) == set(range(len(sizes))) - set(gone)
        assert budget.used_bytes == 0

    asyncio.run(run())


def test_a_client_that_opens_an_upload_and_stalls_does_not_starve_others(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, ingest_mib=1, liveness_s=0.2) as server,
            attending_by_hand(server.federation, server.listening.port, "slow") as slow,
            attending_by_hand(server.federation, server.listening.port, "quick") as quick,
        ):
            whole = content(MIB - 1000, 1.0)
            data = data_of(whole)
            slow_work, quick_work = slow.give_work(), quick.give_work()
            header = slow.header(slow_work, records.to_manifest(whole, with_digests=False))
            stalled = slow.stub.Upload(metadata=slow.metadata)
            await stalled.write(header)
            assert (await stalled.read()).grant.offset == 0
            await stalled.write(pb.UploadFrame(data=data[:1000]))
            receipt = asyncio.create_task(quick.send(quick_work, whole))
            await asyncio.sleep(0.1)
            assert not receipt.done(), "two uploads share a budget that has room for one"
            assert (await receipt).outcome == COMMITTED
            assert await stalled.code() is grpc.StatusCode.UNAVAILABLE
            quick.federation.intake.drop(quick.batch.replies.get().slot)
            resumed = slow.stub.Upload(metadata=slow.metadata)
            await resumed.write(header)
            assert (await resumed.read()).grant.offset == 1000, "what was received is lost"
            for frame in (*data_frames(data[1000:]), end_frame(data)):
                await resumed.write(frame)
            assert (await receipt_of(resumed)).outcome == COMMITTED

    in_loop(run())


def test_a_reply_is_accepted_once_and_the_later_call_wins(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            work, reply = node.give_work(), content(1000)
            header = node.header(work, records.to_manifest(reply, with_digests=False))
            first = node.stub.Upload(metadata=node.metadata)
            await first.write(header)
            await first.read()
            assert (await node.send(work, reply)).outcome == COMMITTED
            await first.write(pb.UploadFrame(data=b"late"))
            assert (await first.read()).receipt.outcome == pb.Receipt.LATE
            for _ in range(3):
                assert (await node.send(work, reply)).outcome == pb.Receipt.DUPLICATE
            assert node.batch.replies.qsize() == 1
            assert node.node.rejections == 0

    in_loop(run())


# ---- forms -------------------------------------------------------------------------------------------------


def image_run(method: dict[str, Any], link: dict[str, Any]) -> RunConfig:
    return parse_run(
        {
            "task": {"name": "image", "classes": list("0123456789"), "size": 8, "channels": 1, "width": 8},
            "method": method,
            "link": link,
            "split": {"kind": "iid", "parts": 30},
            "train": {"batch": 32},
        }
    )


@pytest.mark.parametrize("codec_name", update_codec.CODECS.names())
@pytest.mark.parametrize("preset", registry.SHIPPED)
def test_every_reply_of_our_own_client_fits_the_schema(preset: str, codec_name: str) -> None:
    run = image_run({"name": preset}, {"codec": codec_name})
    prepared = FederatedRun(run, EventLog())
    task, state = prepared.task, prepared.state
    agreement = ReplySchema.of(task, state.model, state.extra, is_first=True)
    flower_adapter.adopt_identity("run")
    host = AppHost(ClientConfig(name="a", data="digits", device="cpu", val_share=0.0), app)
    welcome = pb.Welcome(node_id=7, run_id="run", run_json=run.for_clients(), part=pb.Part(index=0, of=30))
    host.prepare(welcome)
    instruction = messages.Instruction(run_json=run.for_clients(), server_round=1, wants_sums=True)
    guide = messages.guide_record(prepared.frame, prepared.state.memory)
    extra = messages.extra_record(prepared.state.extra)
    for message_type in (HELLO, TRAIN, MEMORY, EVALUATE):
        order = messages.instruction_content(instruction, prepared.state.record, guide, extra)
        message = flower_adapter.instruction(order, run_id="run", dst=7, message_type=message_type, group_id="1")
        reply = host.work(message)
        assert not reply.has_error(), reply.error
        manifest = records.to_manifest(reply.content, with_digests=False)
        agreement.check(message_type, manifest)
        other = TRAIN if message_type == MEMORY else MEMORY
        with pytest.raises(InvalidError):
            agreement.check(other, manifest)
    host.leave()


# ---- what is refused ---------------------------------------------------------------------------------------


async def reject(node: RawNode) -> pb.Receipt:
    """Send a reply larger than any allowed upload."""
    manifest = pb.Manifest()
    manifest.records.add(name="model").arrays.items.add(key="w", dtype="float32", size=1 << 60)
    return (await node.upload([node.header(node.give_work(), manifest)]))[-1].receipt


def test_a_node_that_keeps_sending_rubbish_is_shut_out_by_name(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, quarantine_after=3) as server,
            attending_by_hand(server.federation, server.listening.port, "good") as good,
            attending_by_hand(server.federation, server.listening.port, "bad") as bad,
        ):
            assert (await reject(bad)).outcome == pb.Receipt.REJECTED
            await asyncio.gather(
                *(bad.stub.Declare(pb.Declaration(examples=1 << 60), metadata=bad.metadata) for _ in range(1)),
                return_exceptions=True,
            )
            assert bad.node.state is NodeState.READY, "two are not three"
            open_work = bad.give_work()
            await reject(bad)
            assert bad.node.state is NodeState.QUARANTINED
            failures = [bad.batch.replies.get_nowait().failure for _ in range(bad.batch.replies.qsize())]
            assert len(failures) == 3, "its open work must fail at once"
            assert open_work.slot.upload is None
            assert await bad.ended() is grpc.StatusCode.PERMISSION_DENIED
            bad.give_work()
            assert bad.batch.replies.get_nowait().failure, "later work must fail at once"
            again = good.stub.Attend(pb.AttendRequest(protocol=PROTOCOL, name="bad", instance=b"bad"))
            assert await again.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "in quarantine" in await again.details()
            [event] = of_kind(NodeQuarantined, server.events)
            assert event.node == "bad"
            assert (await good.send(good.give_work(), content(100))).outcome == COMMITTED
            assert sum(server.federation.door.rejections.values()) == 3

    in_loop(run())


def test_an_upload_that_never_arrives_intact_fails_its_work(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            work, manifest = node.give_work(), records.to_manifest(content(100), with_digests=False)
            frames = [node.header(work, manifest), pb.UploadFrame(end=pb.UploadEnd(digest=bytes(16)))]
            outcomes = [(await node.upload(frames))[-1].receipt.outcome for _ in range(4)]
            damaged, rejected = pb.Receipt.DAMAGED, pb.Receipt.REJECTED
            assert outcomes == [damaged, damaged, rejected, pb.Receipt.DUPLICATE]
            assert "damaged 3 times" in node.batch.replies.get_nowait().failure.reason

    in_loop(run())


def test_concurrent_calls_and_progress_reports_per_second_are_bounded(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            work = node.give_work()
            calls = [node.stub.Upload(metadata=node.metadata) for _ in range(16)]
            await until(lambda: node.node.calls == 16)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await node.declare()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for call in calls:
                call.cancel()
            await until(lambda: node.node.calls == 0)
            report = node.stub.Report(metadata=node.metadata)
            for step in range(200):
                await report.write(pb.Progress(id=work.id, step=step))
            await report.done_writing()
            await asyncio.sleep(0.5)
            assert 1 <= node.node.progress.step <= 30, "progress is not read faster than it is useful"

    in_loop(run())


def test_a_silent_node_is_lost_in_time_but_an_uploading_one_is_not(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, liveness_s=0.4) as server,
            attending_by_hand(server.federation, server.listening.port, "idle") as idle,
            attending_by_hand(server.federation, server.listening.port, "busy") as busy,
        ):
            upload = busy.stub.Upload(metadata=busy.metadata)
            await upload.write(busy.header(busy.give_work(), records.to_manifest(content(99), with_digests=False)))
            await upload.read()
            silence_check, started = asyncio.create_task(drop_silent(server.federation)), time.monotonic()
            await until(lambda: idle.node.state is NodeState.LOST)
            assert 0.2 < time.monotonic() - started < 0.6
            assert busy.node.state is NodeState.READY
            await until(lambda: busy.node.state is NodeState.LOST)
            assert time.monotonic() - started > 0.9
            silence_check.cancel()
            lost = [event.node for event in of_kind(NodeLost, server.events)]
            assert lost == ["idle", "busy"]

    in_loop(run())
