"""The images' HEALTHCHECK: exit code 0 if this container's process is healthy, else 1 and a reason.

Runs inside the container every few seconds, so it imports nothing slow.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PORT = 8441  # server.health_port of the run file
_PROBE = "127.0.0.1:8452"  # --probe of `fednc serve`
_TIMEOUT_S = 3.0
_ESTABLISHED = "01"


def server_answers(port: int = _PORT) -> bool:
    """Whether the gRPC health service says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[no-untyped-call]
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def client_is_connected(tables: tuple[Path, ...] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))) -> bool:
    """Whether this container has an open connection: a client has only the one to its server."""
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return any(fields[3] == _ESTABLISHED for fields in lines)


def models_answer(probe: str = _PROBE) -> bool:
    """Whether every served model is ready."""
    import http.client

    connection = http.client.HTTPConnection(probe, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(role: str) -> int:
    """Check the server, the served models or the client."""
    if role == "server":
        well = server_answers()
        reason = f"no health service on port {_PORT}; set server.health_port = {_PORT} in the run file"
    elif role == "serve":
        well, reason = models_answer(), f"not every model is ready, or nothing answers at --probe {_PROBE}"
    else:
        well, reason = client_is_connected(), "not connected to a server"
    if not well:
        sys.stderr.write(reason + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
