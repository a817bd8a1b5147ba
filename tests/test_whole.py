"""What is small is no bulk: it comes with its assignment and goes back in one message; all else is as it was."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from flwr.app import Message, RecordDict
from places import Serving, attending, is_ready, until
from raw_node import UPLOAD_ID, RawNode, attending_by_hand, data_frames, end_frame
from test_ingest import COMMITTED, MIB, content, in_loop, place

from fednc.common import arrays, faults, records
from fednc.common.fingerprint import fingerprint
from fednc.common.wire import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.grid import LinkGrid
from fednc.server.servicer import FederationServicer
from fednc.server.work import Work

HEAD_BYTES = 128  # of .npy


class Halving:
    """An app that answers with half of what it is sent."""

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        return pb.Declaration(examples=1, device="cpu")

    def work(self, message: Message) -> Message:
        halves = {
            name: {key: value / 2 for key, value in arrays.from_record(record).items()}
            for name, record in message.content.items()
        }
        reply = RecordDict({name: arrays.to_record(half) for name, half in halves.items()})
        return Message(reply, reply_to=message)

    def leave(self) -> None:
        pass


def of_values(**tensors: torch.Tensor) -> RecordDict:
    return RecordDict({"model": arrays.to_record(tensors)})


async def ask(server: Serving, node: str, sent: RecordDict) -> dict[str, torch.Tensor]:
    """What the client answers over the shipped grid."""
    grid = LinkGrid(server.federation, asyncio.get_running_loop())
    found = server.federation.roster.by_name(node)
    assert found

    def talk() -> RecordDict:
        [reply] = grid.send_and_receive([grid.create_message(sent, "train", found.node_id, "1")], timeout=10)
        return reply.content

    return arrays.from_record((await asyncio.to_thread(talk))["model"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that carried data, in order."""
    made: list[str] = []
    for name in ("Download", "Upload", "UploadWhole"):
        serve = getattr(FederationServicer, name)

        def noting(self: Any, request: Any, context: Any, serve: Any = serve, name: str = name) -> Any:
            made.append(name)
            return serve(self, request, context)

        monkeypatch.setattr(FederationServicer, name, noting)
    return made


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (1, ["UploadWhole"]),
        ((WHOLE_BYTES - HEAD_BYTES) // 4, ["UploadWhole"]),
        ((WHOLE_BYTES - HEAD_BYTES) // 4 + 1, ["Download", "Upload"]),
        (MIB, ["Download", "Upload"]),
    ],
)
def test_up_to_64_kib_travel_without_a_call_of_their_own(
    tmp_path: Path, calls: list[str], values: int, expected: list[str]
) -> None:
    async def run() -> None:
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            sent = of_values(w=torch.arange(values, dtype=torch.float32))
            assert torch.equal((await ask(server, "a", sent))["w"], torch.arange(values) / 2)
            assert calls == expected
            node, size = server.federation.roster.by_name("a"), 4 * values + HEAD_BYTES
            assert node
            assert (node.bytes_down, node.bytes_up) == (size, size)

    in_loop(run())


def test_what_a_client_has_does_not_come_along_again(tmp_path: Path, calls: list[str]) -> None:
    """A frame beside a model that changes; a question without the frame in between, as evaluation is."""

    async def run() -> None:
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            node = server.federation.roster.by_name("a")
            assert node
            frame, down = torch.ones(1000), []
            for turn in range(4):
                model = torch.full((100,), float(turn))
                for sent in (of_values(w=model, frame=frame), of_values(w=model)):
                    before = node.bytes_down
                    assert torch.equal((await ask(server, "a", sent))["w"], model / 2)
                    down.append(node.bytes_down - before)
            one, both = 400 + HEAD_BYTES, 4400 + 2 * HEAD_BYTES
            assert down == [both, 0, one, 0, one, 0, one, 0]
            assert "Download" not in calls

    in_loop(run())


def test_who_comes_back_without_the_blobs_is_sent_them_again(tmp_path: Path, calls: list[str]) -> None:
    async def run() -> None:
        async with place(tmp_path) as server:
            for _ in range(2):
                async with attending(server, "a", None, Halving()):
                    await until(is_ready(server, "a"))
                    assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
                await until(lambda: not is_ready(server, "a")())
            assert calls == ["UploadWhole"] * 2

    in_loop(run())


def test_a_blob_that_comes_along_damaged_is_downloaded(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            monkeypatch.setattr(faults, "_plan", faults._Plan("client.download:1:corrupt", ""))
            found = await ask(server, "a", of_values(w=torch.ones(3), b=torch.zeros(2)))
            assert (found["w"].tolist(), found["b"].tolist()) == ([0.5] * 3, [0.0] * 2)
            assert calls == ["Download", "UploadWhole"]

    in_loop(run())


@pytest.mark.parametrize("spoil", ["corrupt", "truncate", "duplicate"])
def test_a_whole_reply_that_arrives_spoilt_is_sent_again(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    async def run() -> None:
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            monkeypatch.setattr(faults, "_plan", faults._Plan(f"client.upload:1:{spoil}", ""))
            if spoil == "duplicate":  # more than was declared: no accident makes that
                with pytest.raises(ValueError, match="content"):
                    await ask(server, "a", of_values(w=torch.ones(3)))
                assert server.federation.door.refusals == {"Upload.content": 1}
            else:
                assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
                assert calls == ["UploadWhole"] * 2
                assert not server.federation.door.refusals

    in_loop(run())


def test_a_server_that_takes_nothing_whole_gets_frames(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of before does, whose welcome has no such field."""

    async def run() -> None:
        monkeypatch.setattr("fednc.server.federation.WHOLE_BYTES", 0)
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
            assert calls == ["Upload"]

    in_loop(run())


# ---- by hand -----------------------------------------------------------------------------------------------


def whole(work: Work, reply: RecordDict, **fields: Any) -> pb.WholeUpload:
    """As a client sends it."""
    data = b"".join(bytes(array.data) for array in records.arrays_of(reply))
    header = pb.UploadHeader(
        id=work.id, upload_id=UPLOAD_ID, manifest=records.to_manifest(reply, with_digests=False)
    )
    return pb.WholeUpload(**{"header": header, "data": data, "digest": fingerprint(data)} | fields)


async def send(node: RawNode, upload: pb.WholeUpload) -> pb.Receipt:
    receipt: pb.Receipt = await node.stub.UploadWhole(upload, metadata=node.metadata)
    return receipt


def test_a_whole_reply_is_taken_once_and_counts_like_any_other(tmp_path: Path) -> None:
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
            await broken.write(pb.UploadFrame(data=whole(work, reply).data[:700]))
            await until(lambda: node.node.bytes_up == 700)
            assert (await send(node, whole(work, reply))).outcome == COMMITTED
            taken, data = node.batch.replies.get_nowait().slot.upload, whole(work, reply).data
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
            data = b"".join(bytes(array.data) for array in records.arrays_of(filling))
            for frame in (*data_frames(data), end_frame(data)):
                await held.write(frame)
            await until(lambda: large.batch.replies.qsize() == 1)
            large.federation.intake.drop(large.batch.replies.get().slot)
            outcomes = {(await first).outcome, (await second).outcome}
            assert outcomes == {pb.Receipt.LATE, COMMITTED}
            assert small.batch.replies.qsize() == 1

    in_loop(run())


def test_a_whole_reply_of_which_one_thing_is_wrong(tmp_path: Path) -> None:
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
            assert server.federation.door.refusals == {f"UploadWhole.{field}": 1 for field in wrong}
            work = node.give_work()
            for outcome in (pb.Receipt.DAMAGED, pb.Receipt.DAMAGED, pb.Receipt.REJECTED):
                assert (await send(node, whole(work, reply, digest=bytes(16)))).outcome == outcome
            assert node.batch.replies.get_nowait().failure
            assert server.federation.intake.budget.used_bytes == 0

    in_loop(run())
