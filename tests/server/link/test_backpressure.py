"""Bytes sent before they are read, both ways: what is refused, what HTTP/2 holds back, what slow readers cost."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fednc.common.wire import records
from fednc.protos import federation_pb2 as pb
from fednc.server.storage.events import MessageRejected
from support.heard_events import of_kind
from support.local_servers import until
from support.raw_node import RawNode, attending_by_hand
from support.upload_calls import COMMITTED, MIB, content, in_loop, place, receipt_of


async def flood(call: Any, piece: bytes, most_bytes: int) -> int:
    """Bytes that can be sent, at most `most_bytes`, before the other end accepts no more."""
    frame, sent = pb.UploadFrame(data=piece), 0
    with suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while sent < most_bytes:
            await asyncio.wait_for(call.write(frame), 1)
            sent += len(piece)
    return sent


async def open_upload(node: RawNode, size: int) -> tuple[Any, pb.Grant]:
    """An open upload, and its first grant."""
    call = node.stub.Upload(metadata=node.metadata)
    await call.write(node.header(node.give_work(), records.to_manifest(content(size), with_digests=False)))
    return call, (await call.read()).grant


def test_bytes_beyond_the_grant_are_refused(tmp_path: Path) -> None:
    """Sends a message longer than granted."""

    async def run() -> None:
        async with (
            place(tmp_path, ingest_mib=64, quarantine_after=0) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            calls = [await open_upload(node, MIB) for _ in range(11)]
            share = 64 << 10
            assert {(grant.until, grant.frame) for _, grant in calls[-3:]} == {(share, share)}
            call, _ = calls[-1]
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(pb.UploadFrame(data=bytes(share + 1)))
            receipt = await receipt_of(call)
            assert receipt.outcome == pb.Receipt.REJECTED
            assert "at once" in receipt.reason
            assert server.federation.door.rejections == {"Upload.grant": 1}
            assert [e.field for e in of_kind(MessageRejected, server.events)] == ["grant"]
            assert node.batch.replies.qsize() == 1, "the round waits for a reply that was refused"

    in_loop(run())


@pytest.mark.parametrize("ingest_mib", [8, 128])
def test_unread_bytes_stay_within_http2s_window(tmp_path: Path, ingest_mib: int) -> None:
    """Much has arrived already, so gRPC's own window estimate would have grown; the waiting bytes are unread."""

    async def run() -> None:
        async with (
            place(tmp_path, ingest_mib=ingest_mib) as server,
            attending_by_hand(server.federation, server.listening.port, "a") as node,
        ):
            assert (await node.send(node.give_work(), content(ingest_mib * MIB - MIB))).outcome == COMMITTED
            waiting = node.stub.Upload(metadata=node.metadata)
            manifest = records.to_manifest(content(2 * MIB), with_digests=False)
            await waiting.write(node.header(node.give_work(), manifest))
            sent = await flood(waiting, bytes(16 << 10), 64 * MIB)
            window = 64 << 10  # regardless of the budget
            assert window // 2 < sent <= 1.5 * window + (128 << 10), "gRPC lets in half as much again"

    in_loop(run())


def test_a_client_that_does_not_read_its_download_delays_nobody_and_holds_no_model(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            place(tmp_path, liveness_s=0.2) as server,
            attending_by_hand(server.federation, server.listening.port, "slow") as slow,
            attending_by_hand(server.federation, server.listening.port, "quick") as quick,
        ):
            data, digest = np.ones(32 * MIB, np.uint8), bytes(16)
            held = weakref.ref(data)
            server.federation.blobs.hold({digest: memoryview(data)})
            request = pb.DownloadRequest(digests=[digest])
            unread = [slow.stub.Download(request, metadata=slow.metadata) for _ in range(3)]
            await until(lambda: slow.node.calls == 3)
            received = [len(chunk.data) async for chunk in quick.stub.Download(request, metadata=quick.metadata)]
            assert sum(received) == len(data)
            await asyncio.sleep(1)
            assert slow.node.calls == 3, "a round in progress waits for a slow client"
            server.federation.blobs.release([digest])
            del data
            await until(lambda: held() is None)
            for call in unread:
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    _ = [chunk async for chunk in call]
                assert ended.value.code() is grpc.StatusCode.NOT_FOUND
            await until(lambda: slow.node.calls == 0)

    in_loop(run())
