"""Who may call: anybody on this machine; beyond it, those with a certificate or a token of the server's authority.

The files are those of `fednc certs`, and the checks those of `server/access/`. Both protocols ask here before they
read a request.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fednc.common.address import Address, is_loopback
from fednc.common.errors import ConfigError
from fednc.common.security import credentials
from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.web.certificates import check_server_folder
from fednc.server.access.identity import (
    Anybody,
    Authenticator,
    ByCertificate,
    ByToken,
    Caller,
    Refusal,
    WatchedFile,
    read_tokens,
)

log = logging.getLogger("fednc.serve")
T = TypeVar("T")
MODES = ("auto", "mtls", "token", "none")
_PROBLEMS = {problem.grpc_status: problem for problem in (Problem.UNAUTHENTICATED, Problem.FORBIDDEN)}


@dataclass(frozen=True)
class Door:
    """How the ports are protected. `certs` None means plaintext."""

    mode: str
    authenticator: Authenticator
    certs: Path | None = None

    def admit_http(self, certificate: bytes, headers: list[tuple[bytes, bytes]], client: Any) -> None:
        """Raises RequestRefusal unless this caller may ask."""
        if self.mode == "none":
            return
        given = next((value for name, value in headers if name == b"authorization"), b"")
        self._admit(Caller(str(client), certificate, given.decode("latin-1")))

    def admit_grpc(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises RequestRefusal unless this caller may ask."""
        if self.mode == "none":
            return
        pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        self._admit(Caller(context.peer(), pem, str(given)))

    def _admit(self, caller: Caller) -> None:
        try:
            self.authenticator.authenticate(caller)
        except Refusal as refusal:
            problem = _PROBLEMS.get(refusal.status, Problem.UNAUTHENTICATED)
            raise RequestRefusal(refusal.reason, problem) from None

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """For gRPC's port; None for plaintext."""
        if self.certs is None:
            return None
        pair = (self.certs / credentials.KEY).read_bytes(), (self.certs / credentials.CERT).read_bytes()
        if self.mode == "mtls":
            return grpc.ssl_server_credentials([pair], (self.certs / credentials.CA).read_bytes(), True)
        return grpc.ssl_server_credentials([pair])

    def uvicorn_settings(self) -> dict[str, Any]:
        """TLS for HTTP's port, as uvicorn takes it."""
        if self.certs is None:
            return {}
        settings: dict[str, Any] = {
            "ssl_keyfile": str(self.certs / credentials.KEY),
            "ssl_certfile": str(self.certs / credentials.CERT),
        }
        if self.mode == "mtls":
            settings |= {"ssl_ca_certs": str(self.certs / credentials.CA), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return settings


OPEN_DOOR = Door("none", Anybody())


def door_of(auth: str, certs: Path | None, addresses: list[Address], *, insecure: bool) -> Door:
    """The protection that the options ask for.

    Raises:
        ConfigError: a file is missing or damaged, options contradict each other, or others could reach the port.
    """
    if auth not in MODES:
        raise ConfigError(f"--auth {auth}: expected one of {', '.join(MODES)}")
    mode = ("mtls" if certs else "none") if auth == "auto" else auth
    if mode == "none":
        _check_open(certs, addresses, insecure=insecure)
        return OPEN_DOOR
    if insecure:
        raise ConfigError(f"--insecure contradicts --auth {mode}; leave one of them out")
    if certs is None:
        raise ConfigError(f"--auth {mode} needs --certs: the folder of `fednc certs server`")
    check_server_folder(certs, "--certs", authority=mode == "mtls")
    revoked = _watched(certs / credentials.REVOKED, credentials.read_revoked)
    if mode == "token":
        return Door(mode, ByToken(_watched(certs / credentials.TOKENS, read_tokens), revoked), certs)
    return Door(mode, ByCertificate(revoked), certs)


def _check_open(certs: Path | None, addresses: list[Address], *, insecure: bool) -> None:
    if certs is not None:
        raise ConfigError("--auth none is plaintext: leave --certs out, or choose mtls or token")
    reachable = [str(each) for each in addresses if not is_loopback(str(each))]
    if reachable and not insecure:
        raise ConfigError(
            f"{', '.join(reachable)} can be reached from other machines and there are no certificates. Make some "
            "with `fednc certs` and give --certs DIR, or ask for plaintext with --insecure"
        )
    if reachable:
        log.warning("INSECURE: anyone who can reach %s can ask, and read all requests", ", ".join(reachable))


def _watched(path: Path, read: Callable[[bytes], T]) -> WatchedFile[T]:
    try:
        return WatchedFile(path, read, log.warning)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: {e}; `fednc certs init` makes it") from e
