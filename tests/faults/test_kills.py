"""Killing, freezing or disconnecting a server or client does not change the final model."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from conftest import Reference

from fednc.common.wire.protocol import WHOLE_BYTES
from support.process_federation import NAMES, Stage, wait_for

SERVER_LIVES = (
    "server.attend:2:kill",
    "server.download:3:kill",
    "server.upload:2:kill",
    "server.committed:2:kill",
    "server.fold:2:kill",
    "server.checkpoint.begin:1:kill",
    "file.half:2:kill",  # the first file counts the starts, the second holds the checkpoint's tensors
    "server.checkpoint.tensors:1:kill",
    "file.half:3:kill",  # its manifest
    "server.checkpoint.end:1:kill",
)
CLIENT_LIVES = ("client.download:1:kill", "client.work:1:kill", "client.reply:1:kill", "client.upload:2:kill")


def without_number(fault: str) -> str:
    point, _, action = fault.split(":")
    return f"{point}:{action}"


def test_a_server_that_is_killed_at_every_point_in_turn(stage: Callable[..., Stage], reference: Reference) -> None:
    run = stage()
    clients = [run.client(name) for name in NAMES]
    for fault in SERVER_LIVES:
        assert run.server(fault).wait() == -signal.SIGKILL, run.log("server")
    last = run.server()
    assert [process.wait() for process in (last, *clients)] == [0, 0, 0], run.log("server")
    assert run.faults() == [without_number(fault) for fault in SERVER_LIVES]
    assert run.digest() == reference.digest


@pytest.mark.parametrize("method", ["fedadam", "feddyn"])
def test_a_server_that_is_killed_goes_on_with_what_its_step_remembers(
    method: str, stage: Callable[..., Stage]
) -> None:
    """The clients stay and keep what they remember."""
    small = {"method": method, "dim": 32, "width": 8}
    undisturbed, run = stage("undisturbed", **small), stage("killed", **small)
    processes = [undisturbed.server(), *map(undisturbed.client, NAMES)]
    assert [process.wait() for process in processes] == [0, 0, 0], undisturbed.log("server")
    clients = [run.client(name) for name in NAMES]
    lives = ("server.checkpoint.tensors:2:kill", "server.fold:2:kill", "server.checkpoint.end:1:kill")
    for fault in lives:
        assert run.server(fault).wait() == -signal.SIGKILL, run.log("server")
    last = run.server()
    assert [process.wait() for process in (last, *clients)] == [0, 0, 0], run.log("server")
    assert run.faults() == [without_number(fault) for fault in lives]
    assert run.digest() == undisturbed.digest()


def test_a_client_that_is_killed_at_every_point_in_turn(stage: Callable[..., Stage], reference: Reference) -> None:
    run = stage()
    server, other = run.server(), run.client(NAMES[1])
    for fault in CLIENT_LIVES:
        assert run.client(NAMES[0], fault).wait() == -signal.SIGKILL, run.log(NAMES[0])
    last = run.client(NAMES[0])
    assert [process.wait() for process in (server, other, last)] == [0, 0, 0], run.log("server")
    assert run.faults() == [without_number(fault) for fault in CLIENT_LIVES]
    assert len(run.events("lost", node=NAMES[0])) == len(CLIENT_LIVES)
    assert run.digest() == reference.digest


def test_each_side_is_frozen_in_turn(stage: Callable[..., Stage], reference: Reference) -> None:
    run = stage()
    server = run.server("server.fold:3:stop")
    frozen, other = run.client(NAMES[0], "client.work:2:stop"), run.client(NAMES[1])
    wait_for(frozen.is_stopped, "the client to freeze")
    run.expect("lost", node=NAMES[0])
    frozen.send(signal.SIGCONT)
    wait_for(server.is_stopped, "the server to freeze")
    wait_for(lambda: "no connection" in run.log(NAMES[1]), "the clients to notice")
    server.send(signal.SIGCONT)
    assert [process.wait() for process in (server, frozen, other)] == [0, 0, 0], run.log("server")
    assert run.faults() == ["client.work:stop", "server.fold:stop"]
    assert run.digest() == reference.digest


def test_small_models_sent_in_one_message_survive_it_too(stage: Callable[..., Stage]) -> None:
    """The model comes with its assignment and goes back in one message."""
    calm, broken = (stage(place, dim=12, width=8) for place in ("calm", "broken"))
    processes = [calm.server(), *map(calm.client, NAMES)]
    assert [process.wait() for process in processes] == [0, 0, 0], calm.log("server")
    assert (calm.run / "model" / "model.safetensors").stat().st_size < WHOLE_BYTES
    other = broken.client(NAMES[1])
    for fault in ("server.upload:1:kill", "server.committed:3:kill"):
        server = broken.server(fault)
        mine = broken.client(NAMES[0])
        assert server.wait() == -signal.SIGKILL, broken.log("server")
        mine.send(signal.SIGKILL)
    server = broken.server("server.upload:4:corrupt")
    for fault in ("client.download:1:kill", "client.upload:1:kill"):
        assert broken.client(NAMES[0], fault).wait() == -signal.SIGKILL, broken.log(NAMES[0])
    last = broken.client(NAMES[0], "client.download:2:corrupt,client.upload:2:corrupt")
    assert [process.wait() for process in (server, other, last)] == [0, 0, 0], broken.log("server")
    assert len(broken.faults()) == 7
    assert not broken.events("rejected")
    assert broken.digest() == calm.digest()
