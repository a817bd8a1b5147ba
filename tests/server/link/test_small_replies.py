"""A reply in one message: accepted once, continued, made to wait, and refused like one in frames."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import RecordDict

from fednc.bench.probe import rss_mib
from fednc.common.wire import records
from fednc.common.wire.checksum import fingerprint
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.link.assignments import Work
from support.local_servers import until
from support.raw_node import UPLOAD_ID, RawNode, attending_by_hand, data_frames, data_of, end_frame
from support.upload_calls import COMMITTED, MIB, content, in_loop, place


def whole(work: Work, reply: RecordDict, **fields: Any) -> pb.WholeUpload:
    """The reply as a client sends it."""
    data = data_of(reply)
    header = pb.UploadHeader(
        id=work.id, upload_id=UPLOAD_ID, manifest=records.to_manifest(reply, with_digests=False)
    )
    return pb.WholeUpload(**{"header": header, "data": data, "digest": fingerprint(data)} | fields)


async def send(node: RawNode, upload: pb.WholeUpload) -> pb.Receipt:
    receipt: pb.Receipt = await node.stub.UploadWhole(upload, metadata=node.metadata)
    return receipt


def test_a_whole_reply_is_accepted_once_and_counts_like_any_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            work, reply = node.give_work(), content(1000, 2.0)
            assert (await send(node, whole(work, reply))).outcome == COMMITTED
            assert (await send(node, whole(work, reply))).outcome == pb.Receipt.DUPLICATE
            assert (await node.send(work, reply)).outcome == pb.Receipt.DUPLICATE
            other = node.give_work()
            failure = pb.UploadHeader(id=other.id, upload_id=UPLOAD_ID, failure=pb.Failure(kind="OSError"))
            assert (await send(node, pb.WholeUpload(header=failure))).outcome == COMMITTED
            first, second = node.batch.replies.get_nowait(), node.batch.replies.get_nowait()
            assert second.failure
            assert second.failure.kind == "OSError"
            assert first.slot.upload
            assert first.slot.upload.received == node.node.bytes_up
            assert server.federation.intake.budget.used_bytes == node.node.bytes_up

    in_loop(run())


def test_replies_that_wait_for_the_fold_hold_their_data_once(tmp_path: Path) -> None:
    """The manifest used to be a part of the message it came in, and kept that message and its data alive."""

    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            waiting, reply, before = [], content(60_000), 0.0
            for turn in range(320):
                assert (await send(node, whole(node.give_work(), reply))).outcome == COMMITTED
                waiting.append(node.batch.replies.get_nowait())
                server.federation.intake.drop(waiting[-1].slot)
                if turn == 20:
                    before = rss_mib()
            assert rss_mib() - before < 300 * 60_000 / 2**20 / 3

    in_loop(run())


def test_a_reply_that_began_in_frames_ends_whole(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            work, reply = node.give_work(), content(1000, 2.0)
            broken = node.stub.Upload(metadata=node.metadata)
            await broken.write(node.header(work, records.to_manifest(reply, with_digests=False)))
            await broken.read()
            await broken.write(pb.UploadFrame(data=data_of(reply)[:700]))
            await until(lambda: node.node.bytes_up == 700)
            assert (await send(node, whole(work, reply))).outcome == COMMITTED
            taken, data = node.batch.replies.get_nowait().slot.upload, data_of(reply)
            assert taken
            assert bytes(taken.take([len(data)])[0]) == data
            assert node.node.bytes_up == len(data), "a byte was counted twice"
            with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await broken.write(pb.UploadFrame(data=b"late"))

    in_loop(run())


def test_a_whole_reply_waits_for_room_and_the_later_one_wins(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, ingest_mib=1) as server,
            attending_by_hand(server.federation, server.listening.port, "large") as large,
            attending_by_hand(server.federation, server.listening.port, "small") as small,
        ):
            filling, held = content(MIB - 1000), large.stub.Upload(metadata=large.metadata)
            await held.write(large.header(large.give_work(), records.to_manifest(filling, with_digests=False)))
            await held.read()
            work, reply = small.give_work(), content(60_000, 1.0)
            first = asyncio.create_task(send(small, whole(work, reply)))
            await until(lambda: small.node.calls == 1)
            second = asyncio.create_task(send(small, whole(work, reply)))
            await until(lambda: small.node.calls == 2)
            assert not first.done(), "there was no room for it"
            data = data_of(filling)
            for frame in (*data_frames(data), end_frame(data)):
                await held.write(frame)
            await until(lambda: large.batch.replies.qsize() == 1)
            large.federation.intake.drop(large.batch.replies.get().slot)
            assert ((await first).outcome, (await second).outcome) == (pb.Receipt.LATE, COMMITTED)
            assert small.batch.replies.qsize() == 1

    in_loop(run())


def test_whole_replies_with_one_thing_wrong(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, quarantine_after=0) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            reply, too_much = content(1000), content(WHOLE_BYTES)
            header = pb.UploadHeader(id=pb.AssignmentId(node_id=node.welcome.node_id + 1), upload_id=UPLOAD_ID)
            wrong = {
                "header": pb.WholeUpload(data=b"x"),
                "data": whole(node.give_work(), too_much),
                "id": whole(node.give_work(), reply, header=header),
            }
            for field, upload in wrong.items():
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await send(node, upload)
                assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert (ended.value.details() or "").startswith(field)
            assert server.federation.door.rejections == {f"UploadWhole.{field}": 1 for field in wrong}
            work = node.give_work()
            for outcome in (pb.Receipt.DAMAGED, pb.Receipt.DAMAGED, pb.Receipt.REJECTED):
                assert (await send(node, whole(work, reply, digest=bytes(16)))).outcome == outcome
            assert node.batch.replies.get_nowait().failure
            assert server.federation.intake.budget.used_bytes == 0

    in_loop(run())
