"""Downloads: sends blobs in pieces, as fast as a client reads, and keeps nothing for clients that do not read.

Used by the servicer on the event loop.
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
    """Send blobs and yield the size of each piece once the client has read it.

    `is_wanted` is checked before each piece, and every `stall_s` while the client does not read. Once it is false,
    the blobs are released and no further piece is sent. The piece in flight cannot be recalled: gRPC ends a call
    only after it was read.
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
