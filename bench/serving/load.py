"""The callers of `fednc bench serve`: a fixed number of them, each asking again as soon as it has its answer.

Every answer is checked. HTTP is spoken here and not by a client library, whose own cost would hide the server's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from fednc.common.errors import RunFailedError

Ask = Callable[[], Awaitable[bytes]]
Check = Callable[[bytes], bool]
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Measured:
    """What one load has seen: seconds of each request, and of all together."""

    seconds: float = 0.0
    each_s: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self.each_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Milliseconds within which this share of the requests was answered."""
        ordered = sorted(self.each_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def http_load(
    port: int, path: str, body: bytes, headers: dict[str, str], callers: int, duration_s: float, check: Check
) -> Measured:
    """Ask over HTTP. Raises RunFailedError: an answer is wrong."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    request = "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode() + body

    async def run() -> Measured:
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(callers)]
        found = await _ask_all([_http_caller(*each, request) for each in streams], duration_s, check)
        for _, writer in streams:
            writer.close()
        return found

    return asyncio.run(run())


def _http_caller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Ask:
    async def ask() -> bytes:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if not head.startswith(b"http/1.1 200"):
            raise RunFailedError(f"the server refused: {answer[:300]!r}")
        return answer

    return ask


def grpc_load(port: int, message: bytes, callers: int, duration_s: float, check: Check) -> Measured:
    """Ask over gRPC, eight callers to a connection. Raises RunFailedError: an answer is wrong."""

    async def run() -> Measured:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(max(1, callers // 8))
        ]
        calls: list[Any] = [channel.unary_unary(METHOD) for channel in channels]
        asks = [_grpc_caller(calls[place % len(calls)], message) for place in range(callers)]
        found = await _ask_all(asks, duration_s, check)
        for channel in channels:
            await channel.close()
        return found

    return asyncio.run(run())


def _grpc_caller(call: Any, message: bytes) -> Ask:
    async def ask() -> bytes:
        answer: bytes = await call(message)
        return answer

    return ask


async def _ask_all(asks: list[Ask], duration_s: float, check: Check) -> Measured:
    found = Measured()
    started = time.perf_counter()
    end = started + duration_s

    async def caller(ask: Ask) -> None:
        now = time.perf_counter()
        while now < end:
            answer = await ask()
            if not check(answer):
                raise RunFailedError(f"a wrong answer: {answer[:300]!r}")
            before, now = now, time.perf_counter()
            found.each_s.append(now - before)

    await asyncio.gather(*map(caller, asks))
    found.seconds = time.perf_counter() - started
    return found
