"""Downloads: blobs go out in pieces as fast as a client reads, and nothing is held for one that does not.

Used by the servicer, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fednc.common import fault_injection
from fednc.common.wire import framing
from fednc.common.wire.arrays import Buffer
from fednc.server.link.flow_control import Window


async def send(
    blobs: list[Buffer],
    window: Window,
    write: Callable[[bytes], Awaitable[None]],
    *,
    is_wanted: Callable[[], bool],
    stall_s: float,
) -> AsyncIterator[int]:
    """The size of each piece, when the client has taken it.

    `is_wanted` is asked before each piece, and every `stall_s` that the client reads nothing. Once it is not, the
    blobs are let go, and nothing follows what is on its way: gRPC cannot end a call before that is read.
    """
    run = framing.Run(blobs)
    del blobs
    while run.left and is_wanted():
        piece = run.take(window.piece_bytes())
        data, size = (
            framing.pack_chunk(fault_injection.through_all("server.download", piece)),
            framing.size_of(piece),
        )
        del piece
        writing = asyncio.ensure_future(write(data))
        try:
            while not (await asyncio.wait([writing], timeout=stall_s))[0]:
                if not is_wanted():
                    run.drop()
            await writing
        finally:
            writing.cancel()
        yield size
