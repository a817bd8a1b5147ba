"""Mistakes of users: each is a clear error for whoever made it, and the federation goes on without it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link import link as link_module
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import (
    AddressError,
    ConfigError,
    DataError,
    FedncError,
    QuorumError,
    RefusedError,
)
from fednc.common.wire.failure_reasons import SENTENCES
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import NodeState
from fednc.server.listener import serve
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog

DIGITS = [str(i) for i in range(10)]


def write_images(folder, classes=("0", "1"), broken=False) -> str:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), number * 40).save(folder / name / f"{number}.png")
    if broken:
        (folder / classes[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return f"folder:{folder}"


def write_npz(path, labels, size=8) -> str:
    np.savez(path, x_train=np.zeros((len(labels), size, size), np.uint8), y_train=np.array(labels))
    return f"npz:{path}"


BAD = {
    "not there": (lambda tmp: f"npz:{tmp / 'nowhere.npz'}", "nowhere.npz"),
    "not a spec": (lambda _: "cifar", "cifar"),
    "broken image": (lambda tmp: write_images(tmp / "images", broken=True), "broken.png"),
    "unknown class": (lambda tmp: write_images(tmp / "images", classes=("0", "cat")), "cat"),
    "label outside": (lambda tmp: write_npz(tmp / "labels.npz", [0, 1, 12]), "12"),
    "other size": (lambda tmp: write_npz(tmp / "size.npz", [0, 1, 2], size=9), "9"),
}


def link_of(port: int, name: str, data: str) -> Link:
    config = LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True)
    return Link(config, AppHost(ClientConfig(name=name, data=data, device="cpu"), app))


async def a_run_with(tmp_path, name: str, data: str) -> tuple[BaseException, Federation, int]:
    """Two clients on digits and a wrong third one: its error, the federation, the replies of the last round."""
    values = {"task": {"classes": DIGITS, "size": 8, "channels": 1, "width": 8}, "rounds": {"total": 2}}
    run = parse_run({**values, "frame": {"dim": 16}})
    federation = Federation("bad-input", run, tmp_path / "spool", EventLog())
    good, wrong, ports = [], [], []

    def work(grid):
        asyncio.run_coroutine_threadsafe(join(), loop).result()
        return prepared.execute(grid)

    async def join() -> None:
        for client in ("anna", "bert"):
            good.append(asyncio.create_task(link_of(ports[0], client, "digits").run()))
            while len(federation.roster.ready()) < len(good):
                await asyncio.sleep(0.01)
        wrong.extend(await asyncio.gather(link_of(ports[0], name, data).run(), return_exceptions=True))

    loop, prepared = asyncio.get_running_loop(), FederatedRun(run, EventLog())
    result = await serve(federation, work, address="127.0.0.1:0", on_listening=ports.append)
    await asyncio.gather(*good)
    return wrong[0], federation, result.history.rounds[-1].replies


@pytest.mark.parametrize("case", BAD)
def test_data_that_does_not_fit_is_reported_before_round_1_and_the_others_go_on(case, tmp_path):
    make, hint = BAD[case]
    error, federation, replies = asyncio.run(a_run_with(tmp_path, "carl", make(tmp_path)))
    assert isinstance(error, DataError)
    assert hint in str(error)
    (node,) = [node for node in federation.roster.nodes() if node.name == "carl"]
    assert node.problem == f"data: {SENTENCES['data']}"  # the hint stays with the client
    assert node.state in (NodeState.UNFIT, NodeState.LOST)
    assert replies == 2


def test_a_taken_name_is_refused_and_its_holder_goes_on(tmp_path):
    error, _, replies = asyncio.run(a_run_with(tmp_path, "anna", "digits"))
    assert isinstance(error, RefusedError)
    assert "anna" in str(error)
    assert "--name" in str(error)
    assert replies == 2


def test_a_client_waits_for_a_missing_server_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(link_module, "_FIRST_LOG_PAUSE_S", 0.3)
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]

        async def wait_in_vain() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link_of(port, "anna", "digits").run(), 2.0)

        with caplog.at_level(logging.INFO, "fednc.client"):
            asyncio.run(wait_in_vain())
    said = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert 2 <= len(said) <= 7
    assert all(f"127.0.0.1:{port}" in line for line in said)


def write_run(path, **changes) -> str:
    lines = ["[task]", f"classes = {DIGITS!r}".replace("'", '"'), "size = 8", "channels = 1"]
    for section, keys in changes.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items())]
    path.write_text("\n".join(lines))
    return str(path)


def exits(arguments: list[str], kind: type[FedncError], hint: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == kind.exit_code, result.output
    assert hint in result.output.replace("\n", "")


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        address = f"127.0.0.1:{held.getsockname()[1]}"
        run = write_run(tmp_path / "run.toml", server={"runs": f'"{tmp_path}"'})
        exits(["server", run, "--listen", address], AddressError, address)


def test_too_few_clients_end_the_run_with_their_own_exit_code(tmp_path):
    started = time.monotonic()
    run = write_run(tmp_path / "run.toml", rounds={"wait_s": 0.5}, server={"runs": f'"{tmp_path}"'})
    exits(["server", run, "--listen", "127.0.0.1:0"], QuorumError, "0 of 2 clients")
    assert time.monotonic() - started < 60


def test_missing_test_data_of_the_server(tmp_path):
    run = write_run(
        tmp_path / "run.toml", evaluate={"test": '"npz:nowhere.npz"'}, server={"runs": f'"{tmp_path}"'}
    )
    exits(["server", run], DataError, "nowhere.npz")


def test_an_unknown_key_is_named_with_its_place(tmp_path):
    exits(["server", write_run(tmp_path / "run.toml", rounds={"totl": 3})], ConfigError, "rounds.totl")
