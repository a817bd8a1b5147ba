"""Wiring: a federation behind a gRPC server, and a strategy in a thread of its own.

`make_server` returns an unstarted server; `serve` runs one federation from start to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fednc.common.errors import AddressError, ConfigError
from fednc.common.wire import channel_options
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc
from fednc.server.federation import Federation
from fednc.server.grid import LinkGrid
from fednc.server.servicer import FederationServicer

T = TypeVar("T")
SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name
_GOODBYE_S = 3.0  # for clients to take the news that the run is over


@dataclass(frozen=True)
class Listening:
    """An unstarted server and the port that it holds."""

    server: grpc.aio.Server
    port: int


async def make_server(federation: Federation, address: str) -> Listening:
    """A server with the federation, health and reflection services; not started.

    Raises:
        AddressError: the port is taken or the host is unknown.
        ConfigError: plaintext beyond loopback.
    """
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"server.listen = {address!r}: this version speaks plaintext, so it listens on loopback only"
        )
    server = grpc.aio.server(options=channel_options(federation.run.server.liveness_s))
    rpc.add_FederationServicer_to_server(FederationServicer(federation), server)
    await _add_standard_services(server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as e:
        raise AddressError(
            f"cannot listen on {address}: the port is taken or the host is unknown; "
            "stop the other process, or choose another server.listen"
        ) from e
    return Listening(server, port)


async def _add_standard_services(server: grpc.aio.Server) -> None:
    checker = health.aio.HealthServicer()
    for name in ("", SERVICE):
        await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


async def serve(
    federation: Federation,
    work: Callable[[LinkGrid], T],
    *,
    address: str,
    on_listening: Callable[[int], None] = lambda _: None,
) -> T:
    """Listen, run `work(grid)` in a thread, tell the clients how it ended, stop."""
    listening = await make_server(federation, address)
    await listening.server.start()
    on_listening(listening.port)
    grid = LinkGrid(federation, asyncio.get_running_loop())
    reason, failed = "the run is over", False
    try:
        return await asyncio.to_thread(work, grid)
    except BaseException as e:
        reason, failed = str(e) or type(e).__name__, True
        raise
    finally:
        federation.finish(reason, failed=failed)
        await listening.server.stop(_GOODBYE_S)
