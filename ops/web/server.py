"""An ASGI application on a port, while a block runs. Its signals are the caller's, because other things end with
it.

Used by `fednc serve` and `fednc console`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

from fednc.common.address import Address
from fednc.common.errors import AddressError
from fednc.ops.web.http_protocol import BoundedHttpProtocol

_CONNECTIONS = 4096
_IDLE_S = 75  # before an idle connection is closed


class _Server(uvicorn.Server):
    """uvicorn without its handling of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def http_served(app: Any, address: Address, tls: dict[str, Any], drain_s: float) -> AsyncIterator[Address]:
    """Serve `app` while the block runs; afterwards, finish its requests, for at most `drain_s`.

    Args:
        tls: uvicorn's settings that begin with `ssl_`; {} is plaintext.

    Raises:
        AddressError: the port is taken.
    """
    listener = _bound(address)
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        **tls,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield Address(address.host, listener.getsockname()[1])
    finally:
        server.should_exit = True
        await task


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(_CONNECTIONS)  # now, so that nobody is refused until uvicorn has begun
    except OSError as e:
        listener.close()
        why = "is taken" if e.errno == errno.EADDRINUSE else e.strerror or str(e)
        raise AddressError(f"{address}: {why}; stop the other process, or choose another address") from e
    listener.setblocking(False)
    return listener
