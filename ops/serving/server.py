"""`fednc serve` as a process: both ports on one event loop, aliases followed, requests finished before it ends.

Called by `cli/serve.py`. uvicorn serves HTTP; its signals are ours, because gRPC ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import uvicorn

from fednc.common.address import Address
from fednc.common.errors import AddressError
from fednc.ops.serving.access import OPEN_DOOR, Door
from fednc.ops.serving.grpc_service import GrpcService
from fednc.ops.serving.http_protocol import BoundedHttpProtocol
from fednc.ops.serving.inference import Inference
from fednc.ops.serving.metrics import ServeMetrics
from fednc.ops.serving.models import ModelShelf, ServingRules, WantedModel
from fednc.ops.serving.rest import RestApp
from fednc.ops.serving.sources import ModelSource

log = logging.getLogger("fednc.serve")
_CONNECTIONS = 4096
_IDLE_S = 75  # before an idle HTTP connection is closed
_CALLS = 1024  # of gRPC at once


@dataclass(frozen=True)
class ServeSettings:
    """Everything that `fednc serve` decides before it starts.

    Attributes:
        grpc: None: no gRPC.
        probe: where health and metrics are also answered, in plaintext; None: nowhere.
        drain_s: seconds for open requests when the server ends.
    """

    models: tuple[WantedModel, ...]
    rules: ServingRules
    door: Door
    http: Address
    grpc: Address | None
    probe: Address | None = None
    body_mib: int = 16
    drain_s: float = 30.0


@dataclass(frozen=True)
class ServedAddresses:
    """The ports in use."""

    http: Address
    grpc: Address | None
    probe: Address | None


async def serve(
    settings: ServeSettings, source: ModelSource, on_listening: Callable[[ServedAddresses], None]
) -> None:
    """Serve until cancelled; then finish what is open and return.

    Raises:
        AddressError: a port is taken.
        FedncError: a model cannot be loaded at the start.
    """
    metrics = ServeMetrics()
    shelf = ModelShelf(settings.models, source, settings.rules, metrics)
    await shelf.start()
    inference = Inference(shelf, metrics)
    app = RestApp(inference, settings.door, settings.body_mib)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(inference.close)
        stack.push_async_callback(shelf.close)
        http = await stack.enter_async_context(
            _http(app, settings.http, settings, settings.door.uvicorn_settings())
        )
        probe = None
        if settings.probe is not None:
            probes = RestApp(inference, OPEN_DOOR, settings.body_mib, only_probes=True)
            probe = await stack.enter_async_context(_http(probes, settings.probe, settings, {}))
        over_grpc = None
        if settings.grpc is not None:
            over_grpc = await stack.enter_async_context(_grpc(inference, settings))
        on_listening(ServedAddresses(http, over_grpc, probe))
        try:
            await shelf.watch()
        except asyncio.CancelledError:
            log.info("finishing open requests, at most %g s", settings.drain_s)
        inference.is_draining = True


class _HttpServer(uvicorn.Server):
    """uvicorn without its handling of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _http(
    app: Any, address: Address, settings: ServeSettings, tls: dict[str, Any]
) -> AsyncIterator[Address]:
    """Serve `app` while the block runs; afterwards, finish its requests."""
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
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        **tls,
    )
    server = _HttpServer(config)
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
    except OSError as e:
        listener.close()
        why = "is taken" if e.errno == errno.EADDRINUSE else e.strerror or str(e)
        raise AddressError(f"{address}: {why}; stop the other process, or choose another address") from e
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def _grpc(inference: Inference, settings: ServeSettings) -> AsyncIterator[Address]:
    """Serve gRPC while the block runs; afterwards, finish its calls."""
    assert settings.grpc is not None
    most_bytes = settings.body_mib << 20
    options = [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CALLS)
    server.add_generic_rpc_handlers((GrpcService(inference, settings.door).handler(),))
    credentials = settings.door.grpc_credentials()
    try:
        if credentials is None:
            port = server.add_insecure_port(str(settings.grpc))
        else:
            port = server.add_secure_port(str(settings.grpc), credentials)
    except RuntimeError as e:
        raise AddressError(
            f"{settings.grpc}: cannot be used for gRPC; stop the process that has it, or choose another address"
        ) from e
    await server.start()
    try:
        yield Address(settings.grpc.host, port)
    finally:
        await server.stop(settings.drain_s)
