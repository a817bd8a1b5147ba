"""Peers without a credential: how much memory they cost the server, and whether a run goes on beside them."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from conftest import Reference

from fednc.common.security.authority import Authority
from fednc.protos import federation_pb2 as pb
from support.process_federation import NAMES, Stage, wait_for

CONNECTIONS, CALLS, BAR_MIB = 50, 20, 64
BODY = bytes(4 << 20)
SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name
IDLE, FILES = 1200, 1024


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.create(tmp_path / "ca", "strangers")
    made.issue_server(["127.0.0.1"], timedelta(days=30))
    return made


def memory_mib(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


async def end_of(channel: grpc.aio.Channel, kind: str) -> str:
    """How one call of a stranger ends."""

    async def unfinished() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield BODY

    try:
        if kind == "stream":
            await channel.stream_unary(f"/{SERVICE}/Report")(unfinished())
        else:
            squeeze = grpc.Compression.Gzip if kind == "gzip" else None
            await channel.unary_unary(f"/{SERVICE}/Declare")(BODY, compression=squeeze, timeout=60)
    except grpc.aio.AioRpcError as e:
        return e.code().name
    return "OK"


@pytest.mark.parametrize("kind", ["unary", "gzip", "stream"])
def test_fifty_connections_without_a_token_cost_little_memory_and_are_counted(
    stage: Callable[..., Stage], authority: Authority, kind: str
) -> None:
    run = stage(certs=authority.server_folder.parent)
    path = run.folder / "run.toml"
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_port = free.getsockname()[1]
    path.write_text(path.read_text().replace('"mtls"', '"token"') + f"\nmetrics_port = {metrics_port}\n")
    server = run.server()
    run.expect("listening")
    before = memory_mib(server.pid, "VmRSS")
    trust = grpc.ssl_channel_credentials((authority.server_folder / "ca.pem").read_bytes())

    async def attack() -> Counter[str]:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        channels = [
            grpc.aio.secure_channel(f"127.0.0.1:{run.port}", trust, options=own) for _ in range(CONNECTIONS)
        ]
        ends = await asyncio.gather(*(end_of(channel, kind) for channel in channels for _ in range(CALLS)))
        await asyncio.gather(*(channel.close() for channel in channels))
        return Counter(ends)

    ends = asyncio.run(attack())
    assert "OK" not in ends
    assert memory_mib(server.pid, "VmHWM") - before <= BAR_MIB, ends
    page = scrape(metrics_port)
    refused = sum(float(line.split()[1]) for line in page if line.startswith("fednc_refusals_total{"))
    assert refused == CONNECTIONS * CALLS, ends


def scrape(port: int) -> list[str]:
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rwb") as file:
        file.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        file.flush()
        return file.read().decode().splitlines()


def test_a_run_goes_on_and_saves_with_more_idle_connections_than_descriptors(
    stage: Callable[..., Stage], reference: Reference
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"this needs {IDLE + 500} open files; the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run = stage()
    server = run.server()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    run.expect("listening")
    first = run.client(NAMES[0])
    run.expect("ready", node=NAMES[0])
    with ExitStack() as held:

        def crowd() -> None:
            for _ in range(IDLE):
                held.enter_context(socket.create_connection(("127.0.0.1", run.port)))

        crowd()
        second = run.client(NAMES[1])  # its turn comes when silent connections are closed
        run.expect("ready", node=NAMES[1])
        crowd()
        wait_for(lambda: server.code() is not None, "the end of the run")
    assert [process.wait() for process in (server, first, second)] == [0, 0, 0], run.log("server")
    assert run.events("disk") == [], "a checkpoint or an upload found no descriptor"
    assert run.digest() == reference.digest
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
