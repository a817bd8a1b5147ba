"""Runs after one another over the same clients: as if each had been started alone, and nothing is loaded twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, QuorumError, RefusedError
from fednc.common.tasks import discovery
from fednc.common.waiting import Deadline, wait_until
from fednc.common.wire.protocol import ATTENDANCE_KEY
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server.link.nodes import NodeState
from fednc.server.main import Finished
from fednc.server.rounds.control import RunControl
from fednc.server.run_series import LinkSeries, RunSeries, serve_series
from fednc.server.storage.event_log import EventLog
from support.contract_run import CLIENTS, config
from support.local_servers import attending, is_ready, serving, until
from support.multitask_tasks import DATA, MULTITASK
from support.runs_on_grids import in_one_process

BASE = config(rounds={"total": 2, "min_clients": 3})
# A method with state on clients, another width and optimiser: what one run leaves behind must not reach the next.
SHORT = config(rounds={"total": 1, "min_clients": 3})
RUNS = [
    SHORT,
    config(rounds={"total": 2, "min_clients": 3}, method={"name": "scaffold"}),
    config(rounds={"total": 1, "min_clients": 3}, task={"augment": "none"}),
    SHORT,
]


def digest(found: Finished) -> str:
    return hashlib.sha256((found.folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def alone(run: RunConfig) -> dict[str, Any]:
    return dict(in_one_process(run, CLIENTS, app).state.model.items())


def same_bits(found: Finished, model: dict[str, Any]) -> bool:
    return all(found.result.state.model[key].equal(value) for key, value in model.items())


class Counting(AppHost):
    """Counts how often it prepares and leaves, and refuses some runs."""

    prepared = left = 0

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        self.prepared += 1
        if '"lr":7.0' in welcome.run_json:
            raise RefusedError("not this run")
        return super().prepare(welcome)

    def leave(self) -> None:
        self.left += 1
        super().leave()


def over_link(
    folder: Path,
    work: Callable[[RunSeries], Any],
    once: str = "",
    base: RunConfig = BASE,
    clients: Sequence[ClientConfig] = CLIENTS,
) -> tuple[Any, dict[str, Counting], dict[str, Any]]:
    """What `work` returns, the clients' hosts, and how each client's link ended."""
    hosts = {client.name: Counting(client, app) for client in clients}
    ended: dict[str, Any] = {}

    async def main() -> Any:
        tasks: dict[str, asyncio.Task[pb.RunOver]] = {}
        ports: list[int] = []

        def attend(name: str) -> None:
            link = LinkConfig(server=f"127.0.0.1:{ports[0]}", name=name, once=name == once)
            tasks[name] = asyncio.create_task(Link(link, hosts[name]).run())

        def there(series: RunSeries) -> Any:
            assert isinstance(series, LinkSeries)
            for count, name in enumerate(hosts, start=1):
                series.link.call(partial(attend, name))
                while len(series.link.ready()) < count:
                    time.sleep(0.01)
            return work(series)

        folder.mkdir(exist_ok=True)
        try:
            return await serve_series(
                base, folder, EventLog(), there, on_listening=lambda _, port: ports.append(port)
            )
        finally:
            for name, task in tasks.items():
                task.cancel()
                [ended[name]] = await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(main()), hosts, ended


def test_clients_of_a_series_may_announce_pixels_and_parts_of_a_task(tmp_path: Path) -> None:
    """What one may declare is known before a run begins: pixels of classes are more than there are examples."""
    values = {"task": MULTITASK, "frame": {"dim": 8}, "train": {"batch": 4}, "server": {"listen": "127.0.0.1:0"}}
    base = parse_run({**values, "rounds": {"total": 1, "min_clients": 1}})
    client = ClientConfig(name="anna", data=DATA, device="cpu")

    def work(series: RunSeries) -> tuple[Finished, dict[str, int]]:
        assert isinstance(series, LinkSeries)
        found = series.run(base, tmp_path / "link" / "one")
        (node,) = series.link.federation.roster.nodes()
        return found, dict(node.holdings)

    (found, holdings), *_ = over_link(tmp_path / "link", work, base=base, clients=[client])
    assert found.result.state.completed == 1
    assert set(holdings) == set(MULTITASK["tasks"])


def test_each_run_of_a_series_has_the_bits_of_a_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    found, hosts, _ = over_link(tmp_path / "link", partial(all_of, tmp_path / "link"))
    over_the_link = len(loads)
    with LocalGrid(BASE, CLIENTS) as grid:
        local = all_of(tmp_path / "local", RunSeries(grid))
    in_process = len(loads) - over_the_link
    models = [alone(run) for run in RUNS[:3]]
    for model, one, other in zip([*models, models[0]], found, local, strict=True):
        assert same_bits(one, model)
        assert same_bits(other, model)
        assert one.summary["bytes_up"] > 0
    assert digest(found[0]) == digest(found[3]) == digest(local[0])
    # the data is read again only where [task] changed, and back
    assert over_the_link == in_process == 3 * len(CLIENTS)
    assert all(host.prepared == len(RUNS) + 1 for host in hosts.values())  # the first for those who wait


def all_of(folder: Path, series: RunSeries) -> list[Finished]:
    return [series.run(run, folder / f"run-{number}") for number, run in enumerate(RUNS)]


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loads: list[str] = []
    kind = discovery.task_class("image")
    load = kind.load_train

    def counted(self: Any, spec: str, *rest: Any) -> Any:
        loads.append(spec)
        return load(self, spec, *rest)

    monkeypatch.setattr(kind, "load_train", counted)
    return loads


def test_a_run_that_is_cut_off_ends_after_its_round_and_the_next_one_is_whole(tmp_path: Path) -> None:
    with LocalGrid(BASE, CLIENTS) as grid:
        series = RunSeries(grid, RunControl())
        cut = series.run(BASE, tmp_path / "cut", lambda history: len(history.rounds) < 1)
        whole = series.run(SHORT, tmp_path / "whole")
    assert (cut.summary["rounds"], cut.result.run.rounds.total) == (1, 2)
    assert not (cut.folder / "model").exists()
    assert same_bits(whole, alone(SHORT))
    assert not series.is_over


def test_a_client_that_refuses_one_run_stays_for_the_next(tmp_path: Path) -> None:
    refused = config(rounds={"total": 1, "min_clients": 3}, train={"lr": 7.0})

    def work(series: RunSeries) -> Finished:
        with pytest.raises(QuorumError, match=r"3 clients cannot take part.*carl"):
            series.run(refused, tmp_path / "refused")
        return series.run(SHORT, tmp_path / "after")

    found, hosts, _ = over_link(tmp_path / "link", work)
    assert found.result.history.rounds[0].replies == 3
    assert all(host.left >= 1 for host in hosts.values())


def test_a_client_that_refuses_one_run_stays_even_if_its_connection_breaks_meanwhile(tmp_path: Path) -> None:
    refused = config(rounds={"total": 1, "min_clients": 3}, train={"lr": 7.0})

    def work(series: RunSeries) -> Finished:
        assert isinstance(series, LinkSeries)
        with pytest.raises(QuorumError):
            series.run(refused, tmp_path / "refused")
        carl = series.link.federation.roster.by_name("carl")
        assert carl is not None
        before = carl.attendance
        series.link.call(partial(series.link.federation.lose, carl))

        def came_back() -> bool:
            return carl.attendance != before and carl.state is NodeState.UNFIT

        assert wait_until(came_back, Deadline(10), every_s=0.02)
        return series.run(SHORT, tmp_path / "after")

    found, _, ended = over_link(tmp_path / "link", work)
    assert found.result.history.rounds[0].replies == 3
    assert isinstance(ended["carl"], asyncio.CancelledError), "it attended until the end"


def test_a_run_with_another_split_cannot_follow(tmp_path: Path) -> None:
    def work(series: RunSeries) -> None:
        with pytest.raises(ConfigError, match="part when it comes"):
            series.run(config(split={"seed": 4}), tmp_path / "other")

    over_link(tmp_path / "link", work)


def test_a_client_with_once_leaves_before_the_second_run(tmp_path: Path) -> None:
    few = config(rounds={"total": 1, "min_clients": 2})

    def work(series: RunSeries) -> list[Finished]:
        return [series.run(few, tmp_path / f"run-{number}") for number in range(2)]

    found, _, ended = over_link(tmp_path / "link", work, once="carl")
    assert "next run" in ended["carl"].reason
    assert all(isinstance(ended[name], asyncio.CancelledError) for name in ("anna", "bert"))
    assert [one.result.history.rounds[0].replies for one in found] == [2, 2]


def test_an_operators_stop_ends_the_series(tmp_path: Path) -> None:
    control = RunControl()

    def stop(_history: object) -> bool:
        control.stop()
        return True

    with LocalGrid(BASE, CLIENTS) as grid:
        series = RunSeries(grid, control)
        stopped = series.run(BASE, tmp_path / "stopped", stop)
        assert stopped.summary["rounds"] == 1
        assert series.is_over
        assert (stopped.folder / "model").exists()


def test_a_late_declaration_about_the_run_before_changes_nothing(tmp_path: Path) -> None:
    """Honest clients send them: an owner may pause just while the next run begins."""

    async def main() -> None:
        async with serving(tmp_path, {}, rounds={"min_clients": 1}) as server, attending(server, "anna", None):
            await until(is_ready(server, "anna"))
            [node] = server.federation.roster.nodes()
            server.federation.begin_run("next", server.federation.run)
            late = pb.Declaration(examples=7, class_counts=[1] * 4000, run_id="run")
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub = rpc.FederationStub(channel)
                await stub.Declare(late, metadata=((ATTENDANCE_KEY, node.attendance),))
                await until(is_ready(server, "anna"))
            assert (node.examples, node.rejections) == (1, 0)

    asyncio.run(main())
