"""Data small enough to travel in one message comes with its assignment and goes back whole."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from fednc.common import fault_injection as faults
from fednc.common.wire import arrays
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.server.link.grid import LinkGrid
from fednc.server.link.servicer import FederationServicer
from support.local_servers import IdleHost, Serving, attending, is_ready, until
from support.upload_calls import MIB, in_loop, place

HEAD_BYTES = 128  # of .npy


class Halving(IdleHost):
    """An app that answers with half of what it is sent."""

    def work(self, message: Message) -> Message:
        halves = {
            name: {key: value / 2 for key, value in arrays.from_record(record).items()}
            for name, record in message.content.items()
        }
        reply = RecordDict({name: arrays.to_record(half) for name, half in halves.items()})
        return Message(reply, reply_to=message)


def of_values(**tensors: torch.Tensor) -> RecordDict:
    return RecordDict({"model": arrays.to_record(tensors)})


_ROUNDS = itertools.count(1)


async def ask(server: Serving, node: str, sent: RecordDict) -> dict[str, torch.Tensor]:
    """The client's answer over the shipped grid.

    Each question belongs to another round: while a client waits for the receipt of its last answer, it takes a
    question with the same id for a repetition.
    """
    grid = LinkGrid(server.federation, asyncio.get_running_loop())
    found = server.federation.roster.by_name(node)
    assert found

    def talk() -> RecordDict:
        message = grid.create_message(sent, "train", found.node_id, str(next(_ROUNDS)))
        [reply] = grid.send_and_receive([message], timeout=10)
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


def test_blobs_that_a_client_has_are_not_sent_again(tmp_path: Path, calls: list[str]) -> None:
    """A frame and a changing model, with a question without the frame in between, like an evaluation."""

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


def test_a_client_that_comes_back_without_the_blobs_gets_them_again(tmp_path: Path, calls: list[str]) -> None:
    async def run() -> None:
        async with place(tmp_path) as server:
            for _ in range(2):
                async with attending(server, "a", None, Halving()):
                    await until(is_ready(server, "a"))
                    assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
                await until(lambda: not is_ready(server, "a")())
            assert calls == ["UploadWhole"] * 2

    in_loop(run())


def test_a_blob_that_arrives_damaged_with_the_assignment_is_downloaded(
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
def test_a_whole_reply_that_arrives_damaged_is_sent_again(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    async def run() -> None:
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            monkeypatch.setattr(faults, "_plan", faults._Plan(f"client.upload:1:{spoil}", ""))
            if spoil == "duplicate":  # more than was declared: that cannot be an accident
                with pytest.raises(ValueError, match="content"):
                    await ask(server, "a", of_values(w=torch.ones(3)))
                assert server.federation.door.rejections == {"Upload.content": 1}
            else:
                assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
                assert calls == ["UploadWhole"] * 2
                assert not server.federation.door.rejections

    in_loop(run())


def test_a_server_without_whole_uploads_gets_frames(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like an older server, whose welcome lacks the field."""

    async def run() -> None:
        monkeypatch.setattr("fednc.server.link.federation.WHOLE_BYTES", 0)
        async with place(tmp_path) as server, attending(server, "a", None, Halving()):
            await until(is_ready(server, "a"))
            assert (await ask(server, "a", of_values(w=torch.ones(3))))["w"].tolist() == [0.5] * 3
            assert calls == ["Upload"]

    in_loop(run())
