"""`fednc serve` as a process: both ports on one event loop, aliases followed, requests finished before it ends.

Called by `cli/serve.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from fednc.common.address import Address
from fednc.common.errors import AddressError
from fednc.ops.serving.access import OPEN_DOOR, Door
from fednc.ops.serving.grpc_service import GrpcService
from fednc.ops.serving.inference import Inference
from fednc.ops.serving.metrics import ServeMetrics
from fednc.ops.serving.models import ModelShelf, ServingRules, WantedModel
from fednc.ops.serving.rest import RestApp
from fednc.ops.serving.sources import ModelSource
from fednc.ops.web.server import http_served

log = logging.getLogger("fednc.serve")
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
            http_served(app, settings.http, settings.door.uvicorn_settings(), settings.drain_s)
        )
        probe = None
        if settings.probe is not None:
            probes = RestApp(inference, OPEN_DOOR, settings.body_mib, only_probes=True)
            probe = await stack.enter_async_context(http_served(probes, settings.probe, {}, settings.drain_s))
        over_grpc = None
        if settings.grpc is not None:
            over_grpc = await stack.enter_async_context(_grpc(inference, settings))
        on_listening(ServedAddresses(http, over_grpc, probe))
        try:
            await shelf.watch()
        except asyncio.CancelledError:
            log.info("finishing open requests, at most %g s", settings.drain_s)
        inference.is_draining = True


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
    server.add_generic_rpc_handlers((GrpcService(inference, settings.door, settings.body_mib).handler(),))
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
