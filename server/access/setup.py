"""Turns the run file's `[server]` into credentials for the port and an authenticator.

Called once, before anything is loaded, so a wrong path stops the server at once. Refuses settings that would leave
the link open by accident.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import grpc

from fednc.common.address import is_loopback
from fednc.common.config.server import ServerSection
from fednc.common.errors import ConfigError
from fednc.common.security import credentials
from fednc.common.security.certificates import check_authority, check_pair
from fednc.server.access.identity import (
    Anybody,
    Authenticator,
    ByCertificate,
    ByToken,
    WatchedFile,
    read_tokens,
)
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import CredentialsProblem, InsecureLink

T = TypeVar("T")
Mode = Literal["mtls", "token", "none"]
_WARN_BEFORE_S = 30 * 86400


@dataclass(frozen=True)
class Security:
    """How the port is protected. `credentials` None means plaintext."""

    mode: Mode
    authenticator: Authenticator
    credentials: grpc.ServerCredentials | None = None


def security_of(section: ServerSection, address: str, events: EventLog) -> Security:
    """The security that `[server]` asks for at `address`.

    Raises:
        ConfigError: a file is missing or damaged, the keys contradict each other, or they leave the link open.
    """
    mode = _mode(section)
    if mode == "none":
        _check_open(section, address, events)
        return Security(mode, Anybody())
    if section.insecure:
        raise ConfigError(f"server.insecure = true contradicts server.auth = {mode!r}; leave one of them out")

    def trouble(text: str) -> None:
        events.emit(CredentialsProblem(text=text))

    revoked = _watched(section, "revoked", credentials.REVOKED, credentials.read_revoked, trouble)
    pair = _server_pair(section, events)
    if mode == "token":
        tokens = _watched(section, "tokens", credentials.TOKENS, read_tokens, trouble)
        if tokens is None:
            raise ConfigError("server.auth = 'token' needs a list of tokens: set server.certs or server.tokens")
        return Security(mode, ByToken(tokens, revoked), grpc.ssl_server_credentials([pair]))
    authority = _read(section, "ca", credentials.CA)
    try:
        check_authority(authority)
    except ValueError as e:
        raise ConfigError(
            f"{_path(section, 'ca', credentials.CA)} is not a CA certificate ({e}); set server.ca to the nodes' CA"
        ) from e
    return Security(mode, ByCertificate(revoked), grpc.ssl_server_credentials([pair], authority, True))


def _mode(section: ServerSection) -> Mode:
    """The mode; `auto` picks the strictest one that the given files allow."""
    if section.auth == "auto":
        return "mtls" if section.certs or section.cert else "none"
    return section.auth


def _check_open(section: ServerSection, address: str, events: EventLog) -> None:
    if section.certs or section.cert:
        raise ConfigError("server.auth = 'none' is plaintext: leave the certificates out, or choose mtls or token")
    if not section.insecure and not is_loopback(address):
        raise ConfigError(
            f"server.listen = {address!r} is reachable from other machines and there are no certificates. Make "
            "some with `fednc certs` and set server.certs, or set server.insecure = true (--insecure)"
        )
    if section.insecure:
        text = (
            f"INSECURE: anyone who can reach {address} can attend under any name, and anyone on the network path "
            "can read and change the model and all updates"
        )
        events.emit(InsecureLink(text=text))


def _path(section: ServerSection, key: str, name: str) -> Path | None:
    """The file that `server.<key>` names, else the file `name` in `server.certs`."""
    given: str = getattr(section, key)
    if given:
        return Path(given)
    return Path(section.certs) / name if section.certs else None


def _read(section: ServerSection, key: str, name: str) -> bytes:
    path = _path(section, key, name)
    if path is None:
        raise ConfigError(f"server.{key} is missing; set it, or server.certs: the folder of `fednc certs server`")
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; `fednc certs server` makes it, server.{key} names it") from e


def _server_pair(section: ServerSection, events: EventLog) -> tuple[bytes, bytes]:
    key, cert = _read(section, "key", credentials.KEY), _read(section, "cert", credentials.CERT)
    path = _path(section, "cert", credentials.CERT)
    try:
        check_pair(cert, key)
    except ValueError as e:
        raise ConfigError(f"{path} cannot be used: {e}; `fednc certs server --renew` makes another") from e
    left_s = credentials.read_certificate(cert).expires - time.time()
    if left_s <= 0:
        raise ConfigError(f"{path} has expired; `fednc certs server --renew` makes another")
    if left_s < _WARN_BEFORE_S:
        text = f"{path} expires in {left_s / 86400:.0f} days: `fednc certs server --renew`, then restart"
        events.emit(CredentialsProblem(text=text), level=logging.WARNING)
    return key, cert


def _watched(
    section: ServerSection, key: str, name: str, read: Callable[[bytes], T], trouble: Callable[[str], None]
) -> WatchedFile[T] | None:
    path = _path(section, key, name)
    if path is None:
        return None
    try:
        return WatchedFile(path, read, trouble)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: {e}; `fednc certs init` makes it, server.{key} names it") from e
