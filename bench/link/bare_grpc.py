"""`fednc bench link --against raw`: the same bytes over bare gRPC, with handlers that only count them.

This is the least that any link over Python's gRPC can cost. Server and client processes run this file; `measure`
starts them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc

from fednc.bench import probe
from fednc.bench.link.certificates import keys, name_of
from fednc.bench.link.driver import Row, Say, Settings, row, start_clients
from fednc.bench.probe import Child
from fednc.client.link.channel import Credentials, open_channel
from fednc.common.config.server import ServerSection
from fednc.common.wire.protocol import channel_options
from fednc.server.access.setup import security_of
from fednc.server.storage.event_log import EventLog

CHUNKS = (256 << 10, 1 << 20, 4 << 20)
_LIVENESS_S = 5.0
_SERVICE = "fednc.bench.Raw"


def measure(settings: Settings, ours: Row, say: Say) -> Row:
    """The fastest of three chunk sizes, with as many bytes down and up per client and round as in our row."""
    down, up = ours["bytes_down"] // settings.clients, ours["bytes_up"] // settings.clients
    with keys(settings.tls, settings.clients) as folder:
        rows = [_with_chunks(settings, {"down": down, "up": up, "keys": folder}, size) for size in CHUNKS]
    best = min(rows, key=lambda found: found["round_s"])
    say(f"raw gRPC: {down:,} + {up:,} bytes x {settings.clients} clients: {best['round_s']:.4f} s per round")
    return best


def _with_chunks(settings: Settings, what: dict[str, Any], chunk_bytes: int) -> Row:
    shared = {**what, "chunk_bytes": chunk_bytes, "rounds": settings.rounds + settings.warmup}
    with Child("fednc.bench.link.bare_grpc", {"clients": settings.clients, **shared}) as server:
        address = f"127.0.0.1:{server.hear()['port']}"
        with start_clients("fednc.bench.link.bare_grpc", address, settings, **shared) as clients:
            measured = server.hear()
            heard = [client.hear() for client in clients]
    measured["round_s"] = measured["round_s"][settings.warmup :]
    return row("raw", settings, measured, heard) | {"chunk_bytes": chunk_bytes}


# ---- the server process ------------------------------------------------------------------------------------


class Pump:
    """Three calls: wait for all clients, send bytes down, receive bytes."""

    def __init__(self, clients: int, down: int, up: int, rounds: int, chunk_bytes: int) -> None:
        self._clients, self._down, self._up, self._chunk_bytes = clients, down, up, chunk_bytes
        self._barrier = asyncio.Barrier(clients)
        self._left, self._finished = rounds, 0
        self._started, self.worked = 0.0, time.process_time()
        self.port = self.connections = 0
        self.round_s: list[float] = []
        self.over = asyncio.Event()

    async def begin(self, _request: bytes, _context: object) -> bytes:
        """Returns when all clients have called."""
        if await self._barrier.wait() == 0:
            self.connections = self.connections or probe.connections(self.port)
            self._started, self._finished = time.perf_counter(), 0
        return b""

    async def down(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        """In place of the model."""
        for piece in pieces(self._down, self._chunk_bytes):
            yield piece

    async def up(self, frames: AsyncIterator[bytes], _context: object) -> bytes:
        """In place of the update."""
        counted = 0
        async for frame in frames:
            counted += len(frame)
        assert counted == self._up
        self._finished += 1
        if self._finished == self._clients:
            self.round_s.append(time.perf_counter() - self._started)
            self._left -= 1
            if self._left == 0:
                self.over.set()
        return b""

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls as a gRPC service without protobuf: bytes in, bytes out."""
        calls: dict[str, Any] = {
            "Begin": grpc.unary_unary_rpc_method_handler(self.begin),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
        }
        return grpc.method_handlers_generic_handler(_SERVICE, calls)


def pieces(total: int, size: int) -> Iterator[bytes]:
    """`total` bytes in pieces of `size`."""
    whole = bytes(size)
    for start in range(0, total, size):
        yield whole if total - start >= size else whole[: total - start]


async def _serve(clients: int, down: int, up: int, rounds: int, chunk_bytes: int, keys: str) -> None:
    server = grpc.aio.server(options=channel_options(_LIVENESS_S))
    pump = Pump(clients, down, up, rounds, chunk_bytes)
    server.add_generic_rpc_handlers((pump.handlers(),))
    section, address = ServerSection(certs=f"{keys}/server" if keys else ""), "127.0.0.1:0"
    credentials = security_of(section, address, EventLog()).credentials
    pump.port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    probe.tell(port=pump.port)
    await pump.over.wait()
    probe.tell(
        cpu_s=(time.process_time() - pump.worked) / rounds,
        round_s=pump.round_s,
        connections=pump.connections,
        bytes_up=up * clients,
        bytes_down=down * clients,
        peak_rss_mib=probe.peak_rss_mib(),
    )
    await server.stop(1)


# ---- the client processes ----------------------------------------------------------------------------------


async def _pump(server: str, index: int, down: int, up: int, chunk_bytes: int, rounds: int, keys: str) -> None:
    credentials = Credentials.from_folder(Path(keys, name_of(index))) if keys else None
    async with open_channel(server, credentials, _LIVENESS_S) as channel:
        begin: Any = channel.unary_unary(f"/{_SERVICE}/Begin")
        receive: Any = channel.unary_stream(f"/{_SERVICE}/Down")
        send: Any = channel.stream_unary(f"/{_SERVICE}/Up")
        for _ in range(rounds):
            await begin(b"")
            counted = 0
            async for piece in receive(b""):
                counted += len(piece)
            assert counted == down
            await send(pieces(up, chunk_bytes))


async def _attend(server: str, first: int, count: int, **shared: Any) -> None:
    worked = time.process_time()
    await asyncio.gather(*(_pump(server, first + i, **shared) for i in range(count)))
    cpu_s = (time.process_time() - worked) / shared["rounds"]
    probe.tell(peak_rss_mib=probe.peak_rss_mib(), cpu_s=cpu_s)


if __name__ == "__main__":
    asked: dict[str, Any] = json.loads(sys.argv[1])
    asyncio.run(_attend(**asked) if "server" in asked else _serve(**asked))
