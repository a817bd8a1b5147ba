"""Establishes who is calling (by certificate, by token, or unauthenticated), and whether that is still valid.

The interceptor asks on every call; open calls are checked again twice a second. Knows nothing about runs. Only the
check for expiry uses the wall clock.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote

import grpc

from fednc.common.address import is_loopback
from fednc.common.security import credentials

T = TypeVar("T")
UNAUTHENTICATED, FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE, INVALID = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT
TOO_MANY = grpc.StatusCode.RESOURCE_EXHAUSTED


class Refusal(Exception):
    """The caller is refused: the reason, and the gRPC status to return."""

    def __init__(self, reason: str, status: grpc.StatusCode = UNAUTHENTICATED) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


@dataclass(frozen=True)
class Caller:
    """What a call says about its caller."""

    peer: str
    certificate: bytes = b""  # PEM; the TLS handshake has verified its issuer and that the caller has its key
    authorization: str = ""


@dataclass(frozen=True)
class Identity:
    """Who a caller is."""

    holder: credentials.Holder | None = None  # None: no authentication was required
    serial: str = ""
    expires: float = math.inf
    is_local: bool = False  # calls from the server's own machine
    public_key: bytes = b""  # PEM; of the certificate

    def require_name(self, name: str) -> None:
        """Raises Refusal unless the caller may act as `name`."""
        if self.holder and self.holder.name != name:
            raise Refusal(f"this credential belongs to {self.holder}; it cannot be used as {name!r}", FORBIDDEN)

    def require_role(self, role: credentials.Role) -> None:
        """Raises Refusal unless the caller has this role.

        Without authentication, only callers on the server's own machine are operators.
        """
        if role is credentials.Role.OPERATOR and not (self.holder or self.is_local):
            raise Refusal("without encryption, operators must call from the server's own machine", FORBIDDEN)
        if self.holder and self.holder.role is not role:
            raise Refusal(f"only {role}s may call this; the credential belongs to {self.holder}", FORBIDDEN)


class Authenticator(Protocol):
    """Decides who a caller is."""

    def authenticate(self, caller: Caller) -> Identity:
        """Who is calling. Raises Refusal."""

    def check(self, identity: Identity) -> None:
        """Raises Refusal if an identity that was established before is no longer valid."""


class Anybody:
    """Accepts any name, without authentication."""

    def authenticate(self, caller: Caller) -> Identity:
        """An identity without a holder."""
        return Identity(is_local=is_loopback(unquote(caller.peer).partition(":")[2]))

    def check(self, identity: Identity) -> None:
        """Nothing to check."""


class WatchedFile(Generic[T]):
    """A parsed file that is read again when it changes.

    If it cannot be read, the last value stays in force: a half-copied list of revocations must neither lock
    everyone out nor let revoked nodes in again.
    """

    def __init__(self, path: Path, read: Callable[[bytes], T], on_problem: Callable[[str], None]) -> None:
        """Raises OSError or ValueError if it cannot be read at the start."""
        self._path, self._read, self._on_problem = path, read, on_problem
        self._seen = self._signature()
        self._value = read(path.read_bytes())

    @property
    def value(self) -> T:
        """The current content of the file."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
            try:
                self._value = self._read(self._path.read_bytes())
            except (OSError, ValueError) as e:
                self._on_problem(f"{self._path} cannot be read, its last content stays in force: {e}")
        return self._value

    def _signature(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


Tokens = dict[credentials.Holder, list[credentials.TokenEntry]]


def read_tokens(data: bytes) -> Tokens:
    """Tokens by holder."""
    tokens: Tokens = {}
    for entry in credentials.TOKEN_LIST.validate_json(data):
        tokens.setdefault(entry.holder, []).append(entry)
    return tokens


class ByCertificate:
    """Identifies callers by the certificate that the TLS handshake has verified."""

    def __init__(self, revoked: WatchedFile[frozenset[str]] | None) -> None:
        self._revoked = revoked

    def authenticate(self, caller: Caller) -> Identity:
        """See Authenticator."""
        if not caller.certificate:
            raise Refusal("no certificate was presented; get one with `fednc certs node`")
        read = credentials.read_certificate(caller.certificate)
        if read.holder is None:
            raise Refusal(f"certificate {read.serial} names no node; `fednc certs node` makes one that does")
        identity = Identity(read.holder, read.serial, read.expires, public_key=read.public_key)
        self.check(identity)
        return identity

    def check(self, identity: Identity) -> None:
        """See Authenticator."""
        _check_in_force("certificate", identity, self._revoked)


class ByToken:
    """Identifies callers by a token on the server's list."""

    def __init__(self, tokens: WatchedFile[Tokens], revoked: WatchedFile[frozenset[str]] | None) -> None:
        self._tokens, self._revoked = tokens, revoked

    def authenticate(self, caller: Caller) -> Identity:
        """See Authenticator."""
        scheme, _, token = caller.authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal("no token was presented; get one with `fednc certs token`")
        digest, holder = credentials.token_digest(token), credentials.holder_of_token(token)
        for entry in self._tokens.value.get(holder, ()) if holder else ():
            if hmac.compare_digest(entry.sha256, digest):
                identity = Identity(holder, entry.serial, entry.expires)
                self.check(identity)
                return identity
        raise Refusal("unknown token; get one with `fednc certs token`")

    def check(self, identity: Identity) -> None:
        """See Authenticator."""
        entries = self._tokens.value.get(identity.holder, ()) if identity.holder else ()
        entry = next((each for each in entries if each.serial == identity.serial), None)
        if entry is None:
            raise Refusal(f"the token of {identity.holder} was removed from the server's list")
        # Use the current expiry on the list: it may have been shortened since the token was first used.
        _check_in_force("token", replace(identity, expires=entry.expires), self._revoked)


def _check_in_force(kind: str, identity: Identity, revoked: WatchedFile[frozenset[str]] | None) -> None:
    if revoked and identity.serial in revoked.value:
        raise Refusal(f"the {kind} of {identity.holder} is revoked (serial {identity.serial})")
    if identity.expires <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(identity.expires))
        raise Refusal(f"the {kind} of {identity.holder} expired at {when} UTC; renew it with `fednc certs`")
