"""The operator: who may ask, what a run does when asked, what metrics say; and a client in its owner's hands."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from flwr.app import Message, RecordDict
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from places import IdleHost, Place, Serving, attending, invoke, is_ready, make_place, serving, until
from prometheus_client.parser import text_string_to_metric_families

from fednc.cli.status import as_json
from fednc.client import bounds, rehearsal
from fednc.client.app import app
from fednc.client.bounds import Reserve, attend_for
from fednc.client.channel import open_channel
from fednc.client.hooks import CURRENT, CancelledError, Hooks
from fednc.client.host import AppHost, ClientConfig
from fednc.client.link import Host, Link, LinkConfig
from fednc.client.operator import Lever, OperatorLink
from fednc.common import flower
from fednc.common.config import RunConfig, parse_run
from fednc.common.credentials import Role
from fednc.common.errors import AddressError, ConfigError, RefusedError
from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2 as op
from fednc.server.control import DropList
from fednc.server.events import EventLog
from fednc.server.federation import Federation
from fednc.server.identity import FORBIDDEN, Anybody, Caller, Refusal
from fednc.server.metrics import MetricsServer
from fednc.server.process import Finished, run_server
from fednc.server.roster import Node, NodeState
from fednc.server.status import status_of
from fednc.server.work import NODE_LOST, Batch, Work

PARTS = 12  # of which the clients here take a few: small data, quick rounds
METHODS = list(op.DESCRIPTOR.services_by_name["Operator"].methods)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def node_of(server: Serving, name: str) -> Node:
    return next(n for n in server.federation.roster.nodes() if n.name == name)


def hand_out(server: Serving, *names: str) -> Batch:
    """Work without content for these nodes, sent to them."""
    batch = Batch()
    for name in names:
        node = node_of(server, name)
        work_id = pb.AssignmentId(run_id="run", group_id="1", message_type="train", node_id=node.node_id)
        content = flower.instruction(
            RecordDict(), run_id="run", dst=node.node_id, message_type="train", group_id="1"
        )
        batch.works.append(Work(work_id, node, content, pb.Manifest(), batch))
    server.federation.dispatch(batch, {})
    return batch


# ---- who may ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["mtls", "token"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_operators_call_asks_for_an_operators_credential(
    place: Place, method: MethodDescriptor, auth: str
) -> None:
    async def scenario() -> None:
        operator = place.credential(auth, "ops", role=Role.OPERATOR)
        async with (
            serving(place.folder, place.section(auth=auth)) as server,
            open_channel(server.address, place.credential(auth, "a"), 5) as node,
            open_channel(server.address, operator, 5) as allowed,
        ):
            code, reason = await invoke(node, method)
            assert (code, "for operators" in reason) == (grpc.StatusCode.PERMISSION_DENIED, True)
            if method.name == "Watch":
                server.federation.finish("done", failed=False)  # which ends the stream
                assert [each.over async for each in OperatorLink(server.address, operator).watch()] == ["done"]
                return
            code, _ = await invoke(allowed, method)
            asks_for_nothing = method.name == "Control"
            assert code is (grpc.StatusCode.INVALID_ARGUMENT if asks_for_nothing else grpc.StatusCode.OK)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("peer", "is_operator"),
    [("ipv4:127.0.0.1:5", True), ("ipv6:%5B::1%5D:5", True), ("ipv4:10.0.0.7:5", False), ("unix:", False)],
)
def test_without_encryption_an_operator_sits_at_the_servers_machine(peer: str, is_operator: bool) -> None:
    identity = Anybody().authenticate(Caller(peer))
    identity.require_role(Role.NODE)
    if is_operator:
        identity.require_role(Role.OPERATOR)
        return
    with pytest.raises(Refusal, match="own machine") as refused:
        identity.require_role(Role.OPERATOR)
    assert refused.value.status is FORBIDDEN


# ---- a whole run under an operator's hand --------------------------------------------------------------------


def digits_run(**rounds: Any) -> RunConfig:
    return parse_run(
        {
            "task": {"classes": [str(i) for i in range(10)], "model": "cnn", "width": 8, "size": 8, "channels": 1},
            "frame": {"dim": 16},
            "rounds": {"min_clients": 2, "rejoin_s": 0.2, **rounds},
            "split": {"parts": PARTS, "kind": "iid"},
            "evaluate": {"test": "digits"},
            "server": {"listen": "127.0.0.1:0", "keep_checkpoints": 1},
        }
    )


async def with_run(
    run: RunConfig, folder: Path, names: str, scenario: Callable[[Federation, OperatorLink], Awaitable[None]]
) -> tuple[Finished, dict[str, Any]]:
    """Serve `run` to real clients while `scenario` plays the operator; the run's end and each client's."""
    ready: asyncio.Future[tuple[Federation, int]] = asyncio.get_running_loop().create_future()
    serves = asyncio.create_task(
        run_server(run, folder, EventLog(), on_listening=lambda *here: ready.set_result(here))
    )
    federation, port = await ready
    hosts = {name: AppHost(ClientConfig(name=name, data="digits", device="cpu"), app) for name in names}
    attend = {
        name: asyncio.create_task(Link(LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True), host).run())
        for name, host in hosts.items()
    }
    await scenario(federation, OperatorLink(f"127.0.0.1:{port}"))
    finished = await serves
    ends = await asyncio.gather(*attend.values(), return_exceptions=True)
    return finished, dict(zip(attend, ends, strict=True))


def test_an_operator_holds_a_run_drops_a_node_and_ends_the_run_with_its_files(tmp_path: Path) -> None:
    async def scenario(federation: Federation, operator: OperatorLink) -> None:
        watching = asyncio.create_task(collect(operator))
        await operator.pull([Lever.PAUSE])  # before the first round, which waits too
        await until(lambda: len(federation.roster.ready()) == 3, 20)
        await asyncio.sleep(0.3)
        held = await operator.status()
        assert (held.phase, held.paused, held.completed, list(held.missing)) == (held.WAITING, True, 0, [])
        await operator.pull([Lever.RESUME])
        await until(lambda: federation.control.last and federation.control.last.round >= 2, 20)
        await operator.drop(["c"])
        dropped = await operator.status()
        assert [node.state for node in dropped.nodes][2] == "dropped"
        assert list(dropped.dropped) == ["c"]
        await operator.pull([Lever.STOP])
        statuses = await watching
        rounds = [status.completed for status in statuses]
        assert rounds == sorted(rounds)
        assert statuses[-1].over == "an operator stopped the run"
        assert statuses[-1].HasField("accuracy")
        assert {node.name for node in statuses[-1].nodes if node.bytes_up and node.bytes_down} == {*"abc"}

    async def collect(operator: OperatorLink) -> list[op.RunStatus]:
        return [status async for status in operator.watch(0.2)]

    run = digits_run(total=1000, evaluate_every=0)
    finished, ends = asyncio.run(with_run(run, tmp_path, "abc", scenario))
    rounds = finished.summary["rounds"]
    assert 2 <= rounds < 1000
    assert finished.summary["accuracy"] is not None  # of the last round, although only the 1000th would have it
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "summary.json", "rounds.json"}
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == rounds
    assert [(ends[name].reason, ends[name].failed) for name in "ab"] == [
        ("an operator stopped the run", False)
    ] * 2
    assert isinstance(ends["c"], RefusedError)
    assert json.loads((tmp_path / "dropped.json").read_text()) == ["c"]


# ---- levers one by one -----------------------------------------------------------------------------------------


def test_a_dropped_node_fails_its_work_and_stays_out(place: Place) -> None:
    credentials, host = place.certificate("a"), WorkingHost()

    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            attending(server, "a", credentials, host) as link,
        ):
            server.federation.dropped.keep_in(place.folder / "dropped.json")
            operator = OperatorLink(server.address, place.certificate("ops", role=Role.OPERATOR))
            with pytest.raises(ConfigError, match="no node 'nobody-of-this-name' was ever here"):
                await operator.drop(["nobody-of-this-name"])
            await until(is_ready(server, "a"))
            batch = hand_out(server, "a")
            assert list((await operator.status()).missing) == ["a"]
            await operator.drop(["a"])
            with pytest.raises(RefusedError, match="dropped by operator 'ops'"):
                await asyncio.wait_for(link, 2)
            failure = batch.replies.get_nowait().failure
            assert failure is not None
            assert failure.code == NODE_LOST
            later = hand_out(server, "a")  # a strategy that had drawn it already must not wait either
            assert later.replies.get_nowait().failure is not None
            host.done.set()
            async with attending(server, "a", credentials) as again:
                with pytest.raises(RefusedError, match="until this run is over"):
                    await asyncio.wait_for(again, 2)
            assert node_of(server, "a").state is NodeState.DROPPED

    asyncio.run(scenario())
    restarted = DropList()
    restarted.keep_in(place.folder / "dropped.json")
    restarted.check("b")
    with pytest.raises(RefusedError, match="until this run is over"):
        restarted.check("a")


def test_once_the_run_is_over_nothing_may_be_asked(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            server.federation.finish("all done", failed=False)
            with pytest.raises(RefusedError, match="all done"):
                await OperatorLink(server.address).pull([Lever.STOP])

    asyncio.run(scenario())


async def status_command(*args: object) -> tuple[int, str, str]:
    """`fednc status` as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fednc.cli.main", "status", *map(str, args),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_the_command_shows_steers_and_explains(place: Place) -> None:
    certs = place.credential("token", "ops", role=Role.OPERATOR).token
    assert certs

    async def scenario() -> None:
        async with (
            serving(place.folder, place.section(auth="token")) as server,
            attending(server, "a", place.token("a")),
        ):
            await until(is_ready(server, "a"))
            mine = ("--server", server.address, "--certs", certs.parent)
            nodes = place.token("b").token
            shown, refused, silent = await asyncio.gather(
                status_command(*mine, "--pause", "--json", "-"),
                status_command("--server", server.address, "--certs", nodes.parent if nodes else ""),
                status_command("--server", "127.0.0.1:1", "--watch"),
            )
            assert shown[0] == 0
            found = json.loads(shown[1])
            assert (found["run_id"], found["paused"], found["accuracy"], found["phase"]) == (
                "run", True, None, "starting",
            )  # fmt: skip
            assert [(node["name"], node["state"], node["examples"]) for node in found["nodes"]] == [
                ("a", "ready", 1)
            ]
            assert server.federation.control.paused
            assert (refused[0], "this is for operators" in refused[2]) == (RefusedError.exit_code, True)
            assert (silent[0], "no answer from 127.0.0.1:1" in silent[2]) == (AddressError.exit_code, True)

    asyncio.run(scenario())


def test_a_hostile_clients_numbers_do_not_break_a_status(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server, attending(server, "a", None):
            await until(is_ready(server, "a"))
            node = node_of(server, "a")
            node.progress = pb.Progress(step=1, loss=float("nan"), examples_per_s=float("inf"))
            status = await OperatorLink(server.address).status()
            found = as_json(status)["nodes"][0]
            assert json.dumps(found, allow_nan=False)
            assert (found["step"], found["loss"], found["examples_per_s"]) == (1, None, 0)

    asyncio.run(scenario())


# ---- metrics ---------------------------------------------------------------------------------------------------


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Every sample: (name, values of its labels) -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *map(str, sample.labels.values())): sample.value
            for family in families for sample in family.samples
        }  # fmt: skip


def test_metrics_say_what_the_status_says_and_count_what_happened(place: Place) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            attending(server, "a", place.certificate("a")),
            open_channel(server.address, place.certificate("b"), 5) as node,
        ):
            metrics = MetricsServer(server.federation, "127.0.0.1", 0)
            try:
                await until(is_ready(server, "a"))
                node_of(server, "a").bytes_up = 7
                server.federation.control.round = 3
                server.federation.refusals["Upload.manifest.arrays"] += 2
                for _ in range(2):
                    await invoke(node, METHODS[0])  # refused, the second one silently
                for seconds in (0.2, 50.0):
                    server.federation.events.emit("round", "", seconds=seconds, fold_s=seconds / 100)
                server.federation.events.emit("no-reply", "", node="a")
                found = await asyncio.to_thread(scrape, metrics.port)
                status = status_of(server.federation)
            finally:
                await asyncio.to_thread(metrics.close)
            states = Counter(node.state for node in status.nodes)
            shown = {key[1]: value for key, value in found.items() if key[0] == "fednc_clients"}
            assert shown == {state: states[state] for state in shown}
            assert shown.keys() == {*NodeState} - {NodeState.REHEARSING}
            assert found["fednc_round",] == 3
            assert (found["fednc_bytes_total", "up"], found["fednc_bytes_total", "down"]) == (7, 0)
            assert found["fednc_rejections_total", "Upload", "manifest.arrays"] == 2
            assert found["fednc_refusals_total", "PERMISSION_DENIED"] == 1
            assert found["fednc_failed_replies_total", "a"] == 1
            assert found["fednc_round_seconds_sum",] == pytest.approx(50.2)
            assert found["fednc_fold_seconds_bucket", "0.01"] == 1
            assert ("fednc_accuracy",) not in found

    asyncio.run(scenario())


def test_metrics_have_a_port_of_their_own(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            metrics = MetricsServer(server.federation, "127.0.0.1", 0)
            with pytest.raises(AddressError, match=r"server\.metrics_port"):
                MetricsServer(server.federation, "127.0.0.1", metrics.port)
            await asyncio.to_thread(metrics.close)

    asyncio.run(scenario())


# ---- a client and its owner ------------------------------------------------------------------------------------


class WorkingHost(IdleHost):
    """Works batch by batch until it is told that it is done."""

    def __init__(self) -> None:
        self.batches = 0
        self.done = threading.Event()

    def work(self, message: Message) -> Message:
        while not self.done.is_set():
            CURRENT.get().check()
            self.batches += 1
            time.sleep(0.005)
        return Message(RecordDict(), reply_to=message)


async def attend(server: Serving, host: Host, hours: float) -> tuple[Link, asyncio.Task[pb.RunOver | None]]:
    link = Link(LinkConfig(server=server.address, name="a", once=True), host)
    return link, asyncio.create_task(attend_for(link, hours))


def test_a_paused_client_holds_its_work_and_is_given_no_more(place: Place) -> None:
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
            assert batch.replies.empty()  # handing the work out again on its return changed nothing
            server.federation.finish("done", failed=False)
            await asyncio.wait_for(task, 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_work_that_is_held_ends_when_cancelled_or_let_go(is_cancelled: bool) -> None:
    hooks = Hooks()
    hooks.running.clear()
    (hooks.cancelled if is_cancelled else hooks.running).set()
    with pytest.raises(CancelledError) if is_cancelled else nullcontext():
        hooks.check()


def test_a_client_whose_hours_are_over_finishes_its_work_and_nobody_waits_for_it(place: Place) -> None:
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
            assert [event["kind"] for event in server.events[-2:]] == ["leaving", "lost"]

    asyncio.run(scenario())


def test_a_client_short_of_memory_or_disk_says_so_instead_of_working(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            _, task = await attend(server, Reserve(IdleHost(), min_free_gib=1.5), hours=1)
            await until(is_ready(server, "a"))
            monkeypatch.setattr(bounds, "free_bytes", lambda: {"memory": 9 << 30, "disk at /x": 1 << 30})
            batch = hand_out(server, "a")
            await until(lambda: not batch.replies.empty())
            failure = batch.replies.get_nowait().failure
            assert failure is not None
            assert failure.kind == "OutOfReserveError"
            assert "1.00 GiB of disk at /x" in failure.reason
            assert is_ready(server, "a")()  # it asks again next time
            server.federation.finish("done", failed=False)
            await asyncio.wait_for(task, 5)

    free = bounds.free_bytes()
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
            found = await rehearsal.rehearse(config, host)
            assert server.names() == []
            assert (found.part, found.run_id, found.device) == (f"1/{PARTS}", "run", "cpu")
            assert found.batch == min(examples_per_batch, found.examples)
            assert sum(found.class_counts) == found.examples > 0
            assert found.examples_per_s == pytest.approx(found.batch / found.batch_s)
            assert found.memory_bytes > 10 << 20
            assert json.dumps(found.to_json())
            # the name and the part are still to be had, and one who is here is not disturbed
            async with attending(server, "a", None):
                await until(is_ready(server, "a"))
                assert node_of(server, "a").part is not None
                await rehearsal.rehearse(config, host)
                assert is_ready(server, "a")()
                assert server.names() == ["a"]

    asyncio.run(scenario())


def test_a_dry_run_is_refused_like_the_client_would_be(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, place.section()) as server:
            config = LinkConfig(server=server.address, name="b", credentials=place.certificate("a"))
            with pytest.raises(RefusedError, match="does not let you act as 'b'"):
                await rehearsal.rehearse(config, IdleHost())
        with pytest.raises(AddressError, match="no answer"):
            await rehearsal.rehearse(replace(config, server="127.0.0.1:1"), IdleHost())

    asyncio.run(scenario())


def test_a_dry_runs_session_opens_no_other_call(place: Place) -> None:
    """It reads the run file and nothing else."""

    async def scenario() -> None:
        async with serving(place.folder, {}) as server, open_channel(server.address, None, 5) as channel:
            node = server.federation.admit(pb.AttendRequest(protocol=1, name="a", dry_run=True))
            assert server.federation.roster.by_session(node.session) is None
            service = pb.DESCRIPTOR.services_by_name["Federation"]
            for method in service.methods:
                if method.name != "Attend":
                    message = GetMessageClass(method.input_type)()
                    code, _ = await invoke(channel, method, ("fednc-session-bin", node.session), request=message)
                    assert code is grpc.StatusCode.ABORTED

    asyncio.run(scenario())
