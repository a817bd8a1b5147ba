"""Which upload keeps its place in the budget: a slow one only while none waits, one node only one share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.wire import records
from fednc.protos import federation_pb2 as pb
from fednc.server.link.upload_budget import Budget
from fednc.server.link.upload_pace import Pace
from fednc.server.storage.events import UploadPutBack
from support.heard_events import of_kind
from support.local_servers import serving
from support.raw_node import attending_by_hand, data_frames, data_of, end_frame
from support.upload_calls import COMMITTED, MIB, content, in_loop, receipt_of

FLOOR, WINDOW_S, TURN_S = 1000.0, 10.0, 60.0


def problem_after(rates: list[float], step_s: float = 1.0) -> str:
    """The complaint about an upload that sent `rates[i]` bytes in second i."""
    now, received = 0.0, 0.0
    pace = Pace(FLOOR, WINDOW_S, TURN_S, lambda: now)
    pace.note(0)
    for rate in rates:
        now, received = now + step_s, received + rate * step_s
        pace.note(int(received))
    return pace.problem(is_large=False)


@given(pauses=st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_a_slow_honest_link_that_pauses_within_a_window_keeps_its_place(pauses: list[int]) -> None:
    rates = [0.0 if second % 10 in pauses else 10.5 * FLOOR for second in range(40)]
    assert problem_after(rates) == "" or all(second in pauses for second in range(10))


def test_an_occasional_byte_is_too_slow_and_a_link_that_recovers_is_not() -> None:
    trickle = [0.5] * 11
    assert problem_after([0.5] * 9) == "", "nobody is judged before a window is over"
    assert "bytes per second" in problem_after(trickle)
    assert problem_after([*trickle, *[2 * FLOOR] * 11]) == ""


def test_only_a_large_upload_has_a_turn() -> None:
    now = 0.0
    pace = Pace(FLOOR, WINDOW_S, TURN_S, lambda: now)
    now = TURN_S
    assert "share" in pace.problem(is_large=True)
    assert pace.problem(is_large=False) == ""


def test_a_node_that_holds_bytes_waits_behind_those_that_hold_none() -> None:
    async def run() -> None:
        budget, served = Budget(10), list[str]()

        async def come(name: str, owner: str) -> None:
            await budget.acquire(5, owner)
            served.append(name)

        tasks = [asyncio.create_task(come(f"greedy-{i}", "greedy")) for i in range(4)]
        tasks.append(asyncio.create_task(come("modest", "modest")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served == ["greedy-0", "greedy-1"], "while nobody else waits it may have all"
        budget.release(5, "greedy")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served[2] == "modest"
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_a_slow_upload_yields_to_one_that_waits_and_continues_without_a_strike(tmp_path: Path) -> None:
    async def run() -> None:
        section = {"auth": "none", "ingest_mib": 1, "liveness_s": 0.4}
        async with (
            serving(tmp_path, section) as server,
            attending_by_hand(server.federation, server.listening.port, "slow") as slow,
            attending_by_hand(server.federation, server.listening.port, "quick") as quick,
        ):
            whole = content(MIB - 1000, 1.0)
            data = data_of(whole)
            slow_work, quick_work = slow.give_work(), quick.give_work()
            header = slow.header(slow_work, records.to_manifest(whole, with_digests=False))
            trickle = slow.stub.Upload(metadata=slow.metadata)
            await trickle.write(header)
            await trickle.read()
            receipt = asyncio.create_task(quick.send(quick_work, whole))
            sent = 0
            while not trickle.done() and sent < 100:
                await trickle.write(pb.UploadFrame(data=data[sent : sent + 1]))
                sent += 1
                await asyncio.sleep(0.1)
            assert await trickle.code() is grpc.StatusCode.UNAVAILABLE
            assert "others wait" in await trickle.details()
            assert (await receipt).outcome == COMMITTED
            quick.federation.intake.drop(quick.batch.replies.get().slot)
            resumed = slow.stub.Upload(metadata=slow.metadata)
            await resumed.write(header)
            offset = (await resumed.read()).grant.offset
            assert 10 < offset <= sent, "what was received is lost"
            for frame in (*data_frames(data[offset:]), end_frame(data)):
                await resumed.write(frame)
            assert (await receipt_of(resumed)).outcome == COMMITTED
            assert slow.node.rejections == 0
            assert [event.node for event in of_kind(UploadPutBack, server.events)] == ["slow"]

    in_loop(run())
