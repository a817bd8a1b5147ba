"""The operator: who may give commands, and what a run does then."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from fednc.cli.status import as_json
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.channel import open_channel
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig
from fednc.common.errors import AddressError, ConfigError, RefusedError
from fednc.common.security.credentials import Role
from fednc.ops.operator_client import OperatorLink
from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2 as op
from fednc.server.access.identity import FORBIDDEN, Anybody, Caller, Refusal
from fednc.server.link.assignments import NODE_LOST
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import NodeState
from fednc.server.main import Finished, run_server
from fednc.server.operations.commands import DropNode, PauseRun, ReadmitNode, ResumeRun, StopRun
from fednc.server.rounds.control import RunControl
from fednc.server.storage.event_log import EventLog
from support.local_servers import Place, attending, invoke, is_ready, serving, until
from support.working_nodes import WorkingHost, digits_run, hand_out, node_of

METHODS = list(op.DESCRIPTOR.services_by_name["Operator"].methods)


# ---- access --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["mtls", "token"])
def test_a_viewers_credential_opens_nothing_at_the_server(place: Place, auth: str) -> None:
    async def scenario() -> None:
        viewer = place.credential(auth, f"guest-{auth}", role=Role.VIEWER)
        async with (
            serving(place.folder, place.section(auth=auth)) as server,
            open_channel(server.address, viewer, 5) as channel,
        ):
            for service in (
                op.DESCRIPTOR.services_by_name["Operator"],
                pb.DESCRIPTOR.services_by_name["Federation"],
            ):
                for method in service.methods:
                    code, reason = await invoke(channel, method)
                    assert (code, "belongs to viewer" in reason) == (FORBIDDEN, True), method.name

    asyncio.run(scenario())


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
            assert (code, "only operators may call this" in reason) == (grpc.StatusCode.PERMISSION_DENIED, True)
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
def test_without_encryption_operators_must_be_on_the_servers_machine(peer: str, is_operator: bool) -> None:
    identity = Anybody().authenticate(Caller(peer))
    identity.require_role(Role.NODE)
    if is_operator:
        identity.require_role(Role.OPERATOR)
        return
    with pytest.raises(Refusal, match="own machine") as refused:
        identity.require_role(Role.OPERATOR)
    assert refused.value.status is FORBIDDEN


# ---- a whole run with an operator ---------------------------------------------------------------------------


async def with_run(
    run: RunConfig,
    folder: Path,
    names: str,
    scenario: Callable[[Federation, RunControl, OperatorLink], Awaitable[None]],
) -> tuple[Finished, dict[str, Any]]:
    """Serve `run` to real clients while `scenario` plays the operator; return how run and clients ended."""
    control = RunControl()
    ready: asyncio.Future[tuple[Federation, int]] = asyncio.get_running_loop().create_future()
    serves = asyncio.create_task(
        run_server(run, folder, EventLog(), control=control, on_listening=lambda *here: ready.set_result(here))
    )
    federation, port = await ready
    hosts = {name: AppHost(ClientConfig(name=name, data="digits", device="cpu"), app) for name in names}
    attend = {
        name: asyncio.create_task(Link(LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True), host).run())
        for name, host in hosts.items()
    }
    await scenario(federation, control, OperatorLink(f"127.0.0.1:{port}"))
    finished = await serves
    ends = await asyncio.gather(*attend.values(), return_exceptions=True)
    return finished, dict(zip(attend, ends, strict=True))


def test_an_operator_holds_a_run_drops_a_node_and_ends_the_run_with_its_files(tmp_path: Path) -> None:
    async def scenario(federation: Federation, control: RunControl, operator: OperatorLink) -> None:
        watching = asyncio.create_task(collect(operator))
        await operator.ask(PauseRun())  # before the first round, which waits too
        await until(lambda: len(federation.roster.ready()) == 3, 20)
        await asyncio.sleep(0.3)
        held = await operator.status()
        assert (held.phase, held.paused, held.completed, list(held.missing)) == (held.WAITING, True, 0, [])
        await operator.ask(ResumeRun())
        await until(lambda: control.last and control.last.round >= 2, 20)
        await operator.ask(DropNode("c"))
        dropped = await operator.status()
        assert [node.state for node in dropped.nodes][2] == "dropped"
        assert list(dropped.dropped) == ["c"]
        await operator.ask(StopRun())
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
    assert (
        finished.summary["accuracy"] is not None
    )  # evaluated in the last round, although only the 1000th would be
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "summary.json", "rounds.json"}
    assert len(json.loads((tmp_path / "rounds.json").read_text())) == rounds
    assert [(ends[name].reason, ends[name].failed) for name in "ab"] == [
        ("an operator stopped the run", False)
    ] * 2
    assert isinstance(ends["c"], RefusedError)
    assert json.loads((tmp_path / "dropped.json").read_text()) == {"c": "dropped by an operator"}


# ---- single commands -----------------------------------------------------------------------------------------


def test_a_dropped_node_fails_its_work_and_stays_out(place: Place) -> None:
    credentials, host = place.certificate("a"), WorkingHost()
    ops = place.certificate("ops", role=Role.OPERATOR)

    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            attending(server, "a", credentials, host) as link,
        ):
            server.federation.door.keep_in(place.folder)
            operator = OperatorLink(server.address, ops)
            with pytest.raises(ConfigError, match="never seen a node 'nobody-of-this-name'"):
                await operator.ask(DropNode("nobody-of-this-name"))
            await until(is_ready(server, "a"))
            batch = hand_out(server, "a")
            assert list((await operator.status()).missing) == ["a"]
            await operator.ask(DropNode("a"))
            with pytest.raises(RefusedError, match="dropped by operator 'ops'"):
                await asyncio.wait_for(link, 2)
            failure = batch.replies.get_nowait().failure
            assert failure is not None
            assert failure.code == NODE_LOST
            later = hand_out(server, "a")  # a strategy that had already chosen it must not wait either
            assert later.replies.get_nowait().failure is not None
            host.done.set()
            async with attending(server, "a", credentials) as again:
                with pytest.raises(RefusedError, match="after an operator readmits it"):
                    await asyncio.wait_for(again, 2)
            assert node_of(server, "a").state is NodeState.DROPPED

    async def restarted() -> None:
        async with serving(place.folder, place.section()) as server:
            server.federation.door.keep_in(place.folder)
            async with attending(server, "a", credentials) as again:
                with pytest.raises(RefusedError, match="after an operator readmits it"):
                    await asyncio.wait_for(again, 2)
            operator = OperatorLink(server.address, ops)
            assert list((await operator.status()).dropped) == ["a"]
            await operator.ask(ReadmitNode("a"))
            assert list((await operator.status()).dropped) == []
            with pytest.raises(ConfigError, match="'a' is neither dropped nor quarantined; these are: none"):
                await operator.ask(ReadmitNode("a"))
            async with attending(server, "a", credentials):
                await until(is_ready(server, "a"))

    asyncio.run(scenario())
    asyncio.run(restarted())
    assert json.loads((place.folder / "dropped.json").read_text()) == {}


def test_commands_after_the_end_of_the_run_are_refused(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            server.federation.finish("all done", failed=False)
            with pytest.raises(RefusedError, match="all done"):
                await OperatorLink(server.address).ask(StopRun())

    asyncio.run(scenario())


async def status_command(*args: object) -> tuple[int, str, str]:
    """`fednc status` in its own process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fednc.cli.main",
        "status",
        *map(str, args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
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
                "run",
                True,
                None,
                "starting",
            )
            assert [(node["name"], node["state"], node["examples"]) for node in found["nodes"]] == [
                ("a", "ready", 1)
            ]
            assert server.control.paused
            assert (refused[0], "only operators may call this" in refused[2]) == (RefusedError.exit_code, True)
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
