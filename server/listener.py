"""Wires a run together: a federation behind a gRPC server, and a strategy in its own thread.

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

from fednc.common.errors import AddressError, DivergedError, QuorumError
from fednc.common.wire.protocol import UPWARD_LIMIT_BYTES, Options, channel_options
from fednc.protos import federation_pb2 as pb
from fednc.protos import operator_pb2_grpc as operator_rpc
from fednc.server import file_descriptors
from fednc.server.access.identity import Authenticator, Refusal
from fednc.server.access.interceptor import Gate
from fednc.server.access.setup import Security, security_of
from fednc.server.cancelled_calls import ignore_cancelled_calls
from fednc.server.link import malloc
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.link.heartbeat import drop_silent
from fednc.server.link.servicer import FederationServicer, add_to
from fednc.server.operations.prometheus import MetricsServer
from fednc.server.operations.servicer import SERVICE as OPERATOR_SERVICE
from fednc.server.operations.servicer import OperatorServicer
from fednc.server.rounds.control import RunControl
from fednc.server.storage.events import ServerListening

T = TypeVar("T")
G = TypeVar("G", bound=LinkGrid)
SERVICE = pb.DESCRIPTOR.services_by_name["Federation"].full_name
_GOODBYE_S = 3.0  # for clients to read that the run is over
_RECHECK_S = 0.5
_STREAMS_PER_CONNECTION = 20  # a node has at most 16 calls, its attendance and a dry run
_HANDSHAKE_MS = 10_000  # for TLS and HTTP/2; with gRPC's default of 120 s silent connections would pile up
_IDLE_MS = 60_000  # for a connection without any call; a node's connection always has the Attend call
_PROBES = 16  # simultaneous connections to the health service


@dataclass(frozen=True)
class Listening:
    """An unstarted server and its ports."""

    server: grpc.aio.Server
    port: int
    security: Security
    probe: grpc.aio.Server | None = None  # the health service

    async def start(self) -> None:
        """Start answering calls."""
        await self.server.start()
        if self.probe:
            await self.probe.start()

    async def stop(self, grace_s: float) -> None:
        """Give open calls `grace_s` to end, then cancel them."""
        if self.probe:
            await self.probe.stop(None)
        await self.server.stop(grace_s)


async def make_server(
    federation: Federation, address: str, security: Security | None = None, control: RunControl | None = None
) -> Listening:
    """A gRPC server for the federation, and a second one for health probes if the run file asks for it.

    Neither is started. `security` defaults to what the run file says. Operators' commands go to `control`.

    Raises:
        AddressError: a port is taken or the host is unknown.
        ConfigError: see `security_of`.
    """
    ignore_cancelled_calls()
    section = federation.run.server
    security = security or security_of(section, address, federation.events)
    gate = Gate(
        security.authenticator,
        federation.events,
        federation.calls,
        (SERVICE,),
        federation.door.reject_undecodable,
    )
    options = channel_options(section.liveness_s, UPWARD_LIMIT_BYTES)
    servicer = FederationServicer(federation)
    options += [*_stranger_options(), *servicer.http2_options]
    server = grpc.aio.server(options=options, interceptors=[gate])
    add_to(server, servicer)
    operator_rpc.add_OperatorServicer_to_server(OperatorServicer(federation, control or RunControl()), server)
    if section.reflection or security.credentials is None:
        reflection.enable_server_reflection((SERVICE, OPERATOR_SERVICE, reflection.SERVICE_NAME), server)
    port = _bind(server, address, "server.listen", security.credentials)
    if not section.health_port:
        return Listening(server, port, security)
    probe = await _make_probe()
    _bind(probe, f"127.0.0.1:{section.health_port}", "server.health_port")
    return Listening(server, port, security, probe)


def _stranger_options() -> Options:
    """Limits on callers that have not shown a credential (yet)."""
    return [
        ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", file_descriptors.connections(file_descriptors.limit())),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        # gRPC would decompress a message before the caller is authenticated. Honest clients never compress.
        ("grpc.per_message_decompression", 0),
    ]


def _bind(
    server: grpc.aio.Server, address: str, key: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    try:
        if credentials:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as e:
        raise AddressError(
            f"cannot listen on {address}: the port is taken or the host is unknown; "
            f"stop the other process, or choose another {key}"
        ) from e


async def _make_probe() -> grpc.aio.Server:
    """The health service on its own port, because probes carry no certificates. It only ever says `serving`."""
    server, checker = (
        grpc.aio.server(options=[("grpc.max_allowed_incoming_connections", _PROBES)]),
        health.aio.HealthServicer(),
    )
    for name in ("", SERVICE):
        await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    return server


async def drop_invalid(federation: Federation, authenticator: Authenticator) -> None:
    """Within a second, end the attendance and open calls of every node whose credential is no longer valid."""
    while True:
        await asyncio.sleep(_RECHECK_S)
        for node in federation.roster.nodes():
            if node.is_here:
                try:
                    authenticator.check(node.identity)
                except Refusal as refusal:
                    federation.expel(node, refusal)
        federation.calls.end_invalid(authenticator)


async def serve(
    federation: Federation,
    work: Callable[[G], T],
    *,
    address: str,
    grid_type: type[G] = LinkGrid,  # type: ignore[assignment]
    security: Security | None = None,
    control: RunControl | None = None,
    on_listening: Callable[[int], None] = lambda _: None,
) -> T:
    """Listen, run `work(grid)` in a thread, tell the clients how the run ended, and stop."""
    section, control = federation.run.server, control or RunControl()
    metrics = (
        MetricsServer(federation, control, section.metrics_host, section.metrics_port)
        if section.metrics_port
        else None
    )
    malloc.use_one_arena()
    file_descriptors.raise_limit()
    listening = await make_server(federation, address, security, control)
    await listening.start()
    credential_check = asyncio.create_task(drop_invalid(federation, listening.security.authenticator))
    silence_check = asyncio.create_task(drop_silent(federation))
    federation.events.emit(
        ServerListening(
            text=f"run {federation.run_id} listens on {address.rpartition(':')[0]}:{listening.port}, "
            f"{'plaintext' if listening.security.credentials is None else listening.security.mode}",
            port=listening.port,
            auth=listening.security.mode,
            metrics_port=metrics.port if metrics else None,
        )
    )
    on_listening(listening.port)
    grid = grid_type(federation, asyncio.get_running_loop())
    reason, failed = "the run is over", False
    try:
        result = await asyncio.to_thread(work, grid)
        if control.stop_wanted:
            reason = "an operator stopped the run"
        return result
    except asyncio.CancelledError:
        reason, failed = _stopped(section.keep_checkpoints > 0 and not federation.app), True
        raise
    except BaseException as e:
        reason, failed = _for_clients(e), not isinstance(e, DivergedError)  # no client is to blame for divergence
        raise
    finally:
        control.end()
        federation.finish(reason, failed=failed)
        credential_check.cancel()
        silence_check.cancel()
        await listening.stop(_GOODBYE_S)
        if metrics:
            await asyncio.to_thread(metrics.close)


def _stopped(can_resume: bool) -> str:
    """What clients are told when the server process is ended."""
    return "the server was stopped" + ("; if restarted, it continues after the last round" if can_resume else "")


def _for_clients(error: BaseException) -> str:
    """Why a run ended, in words that every client may read: the error itself may quote other clients."""
    if isinstance(error, DivergedError):
        return str(error)  # quotes no client
    fixed = {QuorumError: "too few clients took part or answered", OSError: "the server's disk or network failed"}
    reason = next((text for kind, text in fixed.items() if isinstance(error, kind)), "the server could not go on")
    return f"{reason}; see the server's log"
