"""Hand-made uploads to a server in this process, for the tests of what a client may send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict

from fednc.common.wire import arrays
from fednc.protos import federation_pb2 as pb
from support.local_servers import Serving, serving

MIB = 1 << 20


COMMITTED = pb.Receipt.COMMITTED


def in_loop(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


@asynccontextmanager
async def place(folder: Path, **section: Any) -> AsyncIterator[Serving]:
    async with serving(folder, {"auth": "none", **section}) as server:
        yield server


async def receipt_of(call: Any) -> pb.Receipt:
    """The receipt that follows the grants."""
    while not (event := await call.read()).HasField("receipt"):
        pass
    return event.receipt


def content(size: int, value: float = 0.0) -> RecordDict:
    """A reply of about `size` bytes."""
    return RecordDict({"model": arrays.to_record({"w": torch.full((size // 4,), value)})})
