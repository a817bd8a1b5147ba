"""`fednc bench link --against raw`: the same bytes over bare gRPC, with handlers that only count.

What any link over Python's gRPC costs at least. Server and client processes run this file; `measure` starts them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from fednc.bench import probe
from fednc.bench.link import Row, Say, Settings, row, start_clients
from fednc.bench.probe import Child
from fednc.common.wire import channel_options

CHUNKS = (256 << 10, 1 << 20, 4 << 20)
_LIVENESS_S = 5.0
_SERVICE = "fednc.bench.Raw"


def measure(settings: Settings, bytes_each: int, say: Say) -> Row:
    """The fastest of three chunk sizes, `bytes_each` down and then up per client and round."""
    rows = [_with_chunks(settings, bytes_each, size) for size in CHUNKS]
    best = min(rows, key=lambda found: found["round_s"])
    say(f"raw gRPC: {bytes_each:,} bytes x {settings.clients} clients: {best['round_s']:.4f} s per round")
    return best


def _with_chunks(settings: Settings, bytes_each: int, chunk_bytes: int) -> Row:
    shared = {"bytes_each": bytes_each, "chunk_bytes": chunk_bytes, "rounds": settings.rounds + settings.warmup}
    with Child("fednc.bench.raw", {"clients": settings.clients, **shared}) as server:
        address = f"127.0.0.1:{server.hear()['port']}"
        with start_clients("fednc.bench.raw", address, settings, **shared) as clients:
            measured = server.hear()
            heard = [client.hear() for client in clients]
    measured["round_s"] = measured["round_s"][settings.warmup :]
    return row("raw", settings, measured, heard) | {"chunk_bytes": chunk_bytes}


# ---- the server process ------------------------------------------------------------------------------------


class Pump:
    """Three calls that count: wait for everybody, bytes down, bytes up."""

    def __init__(self, clients: int, bytes_each: int, rounds: int, chunk_bytes: int) -> None:
        self._clients, self._bytes_each, self._chunk_bytes = clients, bytes_each, chunk_bytes
        self._barrier = asyncio.Barrier(clients)
        self._left, self._finished = rounds, 0
        self._started, self.worked = 0.0, time.process_time()
        self.port = self.connections = 0
        self.round_s: list[float] = []
        self.over = asyncio.Event()

    async def begin(self, _request: bytes, _context: object) -> bytes:
        """Released when all clients are there."""
        if await self._barrier.wait() == 0:
            self.connections = self.connections or probe.connections(self.port)
            self._started, self._finished = time.perf_counter(), 0
        return b""

    async def down(self, _request: bytes, _context: object) -> AsyncIterator[bytes]:
        """The model, so to say."""
        for piece in pieces(self._bytes_each, self._chunk_bytes):
            yield piece

    async def up(self, frames: AsyncIterator[bytes], _context: object) -> bytes:
        """The update, so to say."""
        counted = 0
        async for frame in frames:
            counted += len(frame)
        assert counted == self._bytes_each
        self._finished += 1
        if self._finished == self._clients:
            self.round_s.append(time.perf_counter() - self._started)
            self._left -= 1
            if self._left == 0:
                self.over.set()
        return b""

    def handlers(self) -> grpc.GenericRpcHandler:
        """As a service without protobuf: bytes in, bytes out."""
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


async def _serve(clients: int, bytes_each: int, rounds: int, chunk_bytes: int) -> None:
    server = grpc.aio.server(options=channel_options(_LIVENESS_S))
    pump = Pump(clients, bytes_each, rounds, chunk_bytes)
    server.add_generic_rpc_handlers((pump.handlers(),))
    pump.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    probe.tell(port=pump.port)
    await pump.over.wait()
    probe.tell(
        cpu_s=(time.process_time() - pump.worked) / rounds,
        round_s=pump.round_s,
        connections=pump.connections,
        bytes_up=bytes_each * clients,
        bytes_down=bytes_each * clients,
        peak_rss_mib=probe.peak_rss_mib(),
    )
    await server.stop(1)


# ---- the client processes ----------------------------------------------------------------------------------


async def _pump(server: str, bytes_each: int, chunk_bytes: int, rounds: int) -> None:
    async with grpc.aio.insecure_channel(server, options=channel_options(_LIVENESS_S)) as channel:
        begin: Any = channel.unary_unary(f"/{_SERVICE}/Begin")
        down: Any = channel.unary_stream(f"/{_SERVICE}/Down")
        up: Any = channel.stream_unary(f"/{_SERVICE}/Up")
        for _ in range(rounds):
            await begin(b"")
            counted = 0
            async for piece in down(b""):
                counted += len(piece)
            assert counted == bytes_each
            await up(pieces(bytes_each, chunk_bytes))


async def _attend(server: str, first: int, count: int, **shared: int) -> None:
    del first
    worked = time.process_time()
    await asyncio.gather(*(_pump(server, **shared) for _ in range(count)))
    cpu_s = (time.process_time() - worked) / shared["rounds"]
    probe.tell(peak_rss_mib=probe.peak_rss_mib(), cpu_s=cpu_s)


if __name__ == "__main__":
    asked: dict[str, Any] = json.loads(sys.argv[1])
    asyncio.run(_attend(**asked) if "server" in asked else _serve(**asked))
