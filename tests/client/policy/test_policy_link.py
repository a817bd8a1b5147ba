"""The owner's policy over real gRPC: a hostile server is refused, an honest run continues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from flwr.app import RecordDict

from fednc.client.link.link import Link, LinkConfig
from fednc.client.policy.guard import Guard
from fednc.common.config.run import RunConfig
from fednc.common.initialise.messages import GRADIENT
from fednc.common.wire.messages import CALIBRATE, EVALUATE, HELLO, TRAIN
from fednc.protos import federation_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.link.nodes import NodeState
from fednc.server.listener import serve
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, MessageRejected, NodeQuarantined, NodeUnfit
from support.clients_with_policy import Site, open_but, strict_but
from support.heard_events import of_kind
from support.hostile.image_server import (
    content_of,
    gradient_content,
    hostile_run,
    images_from_gradients,
    recovered,
    write_images,
)

T = TypeVar("T")
ITERATIONS = 120
WAIT_S = 30.0


def over_grpc(
    run: RunConfig, guards: dict[str, Guard], folder: Path, work: Callable[[LinkGrid], T], run_id: str = "run"
) -> tuple[T, Federation, list[Event]]:
    """The result of `work` at a server with clients over real links; `guards` by name."""
    log, events = EventLog(), list[Event]()
    log.listen(events.append)

    async def main() -> tuple[T, Federation]:
        federation = Federation(run_id, run, folder / "spool", log)
        attending: list[asyncio.Task[pb.RunOver]] = []
        ports: list[int] = []

        def attend(name: str, guard: Guard) -> None:
            address = f"127.0.0.1:{ports[0]}"
            config = LinkConfig(server=address, name=name, once=True, before_download=guard.before_download)
            attending.append(asyncio.create_task(Link(config, guard).run()))

        def there(grid: LinkGrid) -> T:
            for name, guard in guards.items():
                grid.call(partial(attend, name, guard))
                until = time.monotonic() + WAIT_S
                while not (attending[-1].done() or name in map(grid.name_of, grid.get_node_ids())):
                    assert time.monotonic() < until
                    time.sleep(0.01)
            return work(grid)

        result = await serve(federation, there, address="127.0.0.1:0", on_listening=ports.append)
        await asyncio.gather(*attending, return_exceptions=True)
        return result, federation

    result, federation = asyncio.run(main())
    return result, federation, events


def ask(grid: LinkGrid, content: RecordDict, kind: str) -> Iterator[RecordDict | str]:
    """Each node's answer, or its reason for refusing."""
    messages = [grid.create_message(content, kind, node, "1") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(messages, timeout=WAIT_S):
        yield reply.error.reason if reply.has_error() else reply.content


def site(folder: Path, **kind: Any) -> tuple[Site, np.ndarray[Any, Any]]:
    made = Site(folder, val_share=0.0, **kind)
    return made, write_images(made.images, (12, 9))


@pytest.mark.parametrize("has_policy", [False, True])
def test_a_hostile_server_and_its_gradients_over_grpc(has_policy: bool, tmp_path: Path) -> None:
    policy = strict_but(floor={"examples": 21, "held_out": 0}) if has_policy else None
    owned, wanted = site(tmp_path / "site", policy=policy)
    run = hostile_run(
        method={"name": "fedavg"}, init={"kind": "nio-exact", "batch": 1}, server={"quarantine_after": 1}
    )

    def work(grid: LinkGrid) -> list[RecordDict | str]:
        found = [one for i in range(ITERATIONS) for one in ask(grid, gradient_content(run, i), GRADIENT)]
        return [*found, *ask(grid, content_of(run, 0), HELLO)]

    (*answers, hello), federation, events = over_grpc(run, {"site": owned.start()}, tmp_path, work)
    contents = [answer for answer in answers if isinstance(answer, RecordDict)]
    images = images_from_gradients(iter(contents), run)
    assert isinstance(hello, RecordDict), "the client is still there, and answers what it may"
    if not has_policy:
        assert recovered(images, wanted) == 21
        return
    assert (images, contents) == ([], [])
    assert {str(answer).partition(": ")[2] for answer in answers} == {
        "gradients: the client's owner does not allow gradients"
    }
    assert all(str(answer).startswith("refused-by-owner: ") for answer in answers)
    node = federation.roster.nodes()[0]
    assert node.rejections == 0
    assert not federation.door.rejections
    assert not [event for event in events if isinstance(event, NodeQuarantined | MessageRejected)]
    assert len(owned.log(outcome="refused", code="gradients")) == ITERATIONS
    assert [line["kind"] for line in owned.log(outcome="sent")] == [HELLO]


def honest_run(method: str, rounds: int = 2, seed: int = 0) -> RunConfig:
    return hostile_run(
        seed=seed,
        method={"name": method},
        train={"batch": 8, "lr": 0.05, "epochs": 2},
        rounds={"total": rounds, "min_clients": 1, "rejoin_s": 0.2},
        server={"quarantine_after": 1},
    )


def carry_out(run: RunConfig, guards: dict[str, Guard], folder: Path, run_id: str) -> tuple[RunResult, Any, Any]:
    prepared = FederatedRun(run, EventLog())
    return over_grpc(
        run, guards, folder, lambda grid: prepared.execute(grid, Surroundings(name_of=grid.name_of)), run_id
    )


def test_a_run_continues_without_refused_replies_and_shuts_nobody_out(tmp_path: Path) -> None:
    """One client sends no class sums, another allows two answers only; the run ends with a result."""
    sites = {
        "free": Site(tmp_path / "free"),
        "no-sums": Site(tmp_path / "no-sums", open_but(allow={"class_sums": False})),
        "two-answers": Site(tmp_path / "two", open_but(quota={"queries": 2})),
    }
    for seed, one in enumerate(sites.values()):
        write_images(one.images, (30, 20), seed)
    guards = {name: one.start() for name, one in sites.items()}
    result, federation, events = carry_out(honest_run("fednc"), guards, tmp_path, "goes-on")
    assert len(result.history.rounds) == 2
    assert {node.name for node in federation.roster.nodes()} == set(sites)
    assert all(node.rejections == 0 for node in federation.roster.nodes())
    assert not of_kind(NodeQuarantined, events)
    assert sites["free"].log(outcome="refused") == []
    assert {line["code"] for line in sites["no-sums"].log(outcome="refused")} == {"class-sums"}
    counted = [line for line in sites["two-answers"].log(outcome="sent") if line["kind"] != HELLO]
    assert len(counted) == 2
    assert {line["code"] for line in sites["two-answers"].log(outcome="refused")} == {"queries-quota"}


def test_a_run_that_the_strict_policy_allows_gets_every_reply(tmp_path: Path) -> None:
    owned = Site(tmp_path / "site", strict_but())
    write_images(owned.images, (90, 60))
    run = hostile_run(
        method={"name": "fedavg", "readout": "head"},
        train={"batch": 32, "lr": 0.05},
        rounds={"total": 2, "min_clients": 1},
    )
    result, _, _ = carry_out(run, {"site": owned.start()}, tmp_path, "strict")
    assert [record.replies for record in result.history.rounds] == [1, 1]
    assert owned.log(outcome="refused") == []
    kinds = [line["kind"] for line in owned.log(outcome="sent")]
    assert [kind for kind in kinds if kind != HELLO] == [*[TRAIN, EVALUATE] * 2, CALIBRATE]
    assert {line["digest"] for line in owned.log()} == {run.digest}


def test_a_second_run_is_refused_and_does_not_count_against_the_node(tmp_path: Path) -> None:
    owned = Site(tmp_path / "site", open_but(runs={"pin_first": True}))
    write_images(owned.images, (30, 20))
    carry_out(honest_run("fedavg", rounds=1), {"site": owned.start()}, tmp_path, "first")
    free = Site(tmp_path / "free")
    write_images(free.images, (30, 20), 9)
    guards = {"site": owned.start(), "free": free.start()}
    result, federation, events = carry_out(honest_run("fedavg", 1, seed=5), guards, tmp_path, "second")
    assert [record.replies for record in result.history.rounds] == [1]
    unfit = of_kind(NodeUnfit, events)[0]
    assert (unfit.node, "refused-by-owner: pinned: " in unfit.problem) == ("site", True)
    assert federation.roster.by_name("site").rejections == 0  # type: ignore[union-attr]
    assert not of_kind(NodeQuarantined, events)
    assert {node.state for node in federation.roster.nodes()} <= {NodeState.UNFIT, NodeState.LOST, NodeState.READY}


def test_a_download_beyond_the_ceiling_is_never_started(tmp_path: Path) -> None:
    owned, _ = site(tmp_path / "site", policy=open_but(ceiling={"lr": 0, "forgetting": 0, "download_mib": 0.01}))
    run = hostile_run(method={"name": "fedavg"})
    content = content_of(run, 0)

    def work(grid: LinkGrid) -> tuple[list[RecordDict | str], int]:
        answers = list(ask(grid, content, HELLO))
        return answers, federation_bytes(grid)

    def federation_bytes(grid: LinkGrid) -> int:
        return sum(node.bytes_down for node in grid.ready())

    (answers, down), _, _ = over_grpc(run, {"site": owned.start()}, tmp_path, work)
    assert str(answers[0]).startswith("refused-by-owner: download: ")
    assert [line["code"] for line in owned.log(outcome="refused")] == ["download"]
    assert down <= 64 << 10, "what came along with the assignment, and nothing else"
    laxer = replace(owned, policy=open_but())
    (answers, down), _, _ = over_grpc(run, {"site": laxer.start()}, tmp_path, work, "other")
    assert isinstance(answers[0], RecordDict)
