"""Who is calling: certificates, tokens or the client's word, and whether that still holds.

Asked by the gate on every call, and twice a second for every call that is open. Knows nothing of runs. Expiry is
the only thing in the server that looks at a wall clock.
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
from fednc.common.security import credentials as cred

T = TypeVar("T")
UNPROVEN, FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNHEARD, GIBBERISH = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT
TOO_MANY = grpc.StatusCode.RESOURCE_EXHAUSTED


class Refusal(Exception):
    """This caller is not let through: why, and as which gRPC status."""

    def __init__(self, reason: str, status: grpc.StatusCode = UNPROVEN) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


@dataclass(frozen=True)
class Caller:
    """What a call shows of itself."""

    peer: str
    certificate: bytes = b""  # PEM; the handshake has proved its issuer and the possession of its key
    authorization: str = ""


@dataclass(frozen=True)
class Identity:
    """Whom a caller has proved to be."""

    holder: cred.Holder | None = None  # None: nothing was asked for; anybody's word counts
    serial: str = ""
    expires: float = math.inf
    is_local: bool = False  # calls from the server's own machine
    public_key: bytes = b""  # PEM; of the certificate

    def require_name(self, name: str) -> None:
        """Raises Refusal unless the caller may act as `name`."""
        if self.holder and self.holder.name != name:
            raise Refusal(f"this credential is of {self.holder}; it does not let you act as {name!r}", FORBIDDEN)

    def require_role(self, role: cred.Role) -> None:
        """Raises Refusal unless the caller has this role. Unproven, only the server's machine is an operator."""
        if role is cred.Role.OPERATOR and not (self.holder or self.is_local):
            raise Refusal("without encryption, operators are served on the server's own machine only", FORBIDDEN)
        if self.holder and self.holder.role is not role:
            raise Refusal(f"this is for {role}s; the credential is of {self.holder}", FORBIDDEN)


class Authenticator(Protocol):
    """Decides who a caller is."""

    def authenticate(self, caller: Caller) -> Identity:
        """Who is calling. Raises Refusal."""

    def check(self, identity: Identity) -> None:
        """Raises Refusal where an identity that was proved before does not hold any more."""


class Anybody:
    """Takes names as they come."""

    def authenticate(self, caller: Caller) -> Identity:
        """Nobody in particular."""
        return Identity(is_local=is_loopback(unquote(caller.peer).partition(":")[2]))

    def check(self, identity: Identity) -> None:
        """Nothing to check."""


class WatchedFile(Generic[T]):
    """A file's meaning, read again when the file changes.

    What cannot be read leaves the last meaning in force: a half-copied list of revocations must neither
    lock everybody out nor let the revoked in again.
    """

    def __init__(self, path: Path, read: Callable[[bytes], T], on_problem: Callable[[str], None]) -> None:
        """Raises OSError, ValueError: it cannot be read at the start."""
        self._path, self._read, self._on_problem = path, read, on_problem
        self._seen = self._signature()
        self._value = read(path.read_bytes())

    @property
    def value(self) -> T:
        """What the file says now."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
            try:
                self._value = self._read(self._path.read_bytes())
            except (OSError, ValueError) as e:
                self._on_problem(f"{self._path} cannot be read, what it said before stays in force: {e}")
        return self._value

    def _signature(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_revoked(data: bytes) -> frozenset[str]:
    """Serials that count no more."""
    return frozenset(entry.serial for entry in cred.REVOKED_LIST.validate_json(data))


Tokens = dict[cred.Holder, list[cred.TokenEntry]]


def read_tokens(data: bytes) -> Tokens:
    """Tokens by whom they speak for."""
    tokens: Tokens = {}
    for entry in cred.TOKEN_LIST.validate_json(data):
        tokens.setdefault(entry.holder, []).append(entry)
    return tokens


class ByCertificate:
    """Takes the name in the certificate that the handshake has verified."""

    def __init__(self, revoked: WatchedFile[frozenset[str]] | None) -> None:
        self._revoked = revoked

    def authenticate(self, caller: Caller) -> Identity:
        """See Authenticator."""
        if not caller.certificate:
            raise Refusal("no certificate was shown; get one with `fednc certs node`")
        read = cred.read_certificate(caller.certificate)
        if read.holder is None:
            raise Refusal(f"certificate {read.serial} names no node; `fednc certs node` makes one that does")
        identity = Identity(read.holder, read.serial, read.expires, public_key=read.public_key)
        self.check(identity)
        return identity

    def check(self, identity: Identity) -> None:
        """See Authenticator."""
        _check_in_force("certificate", identity, self._revoked)


class ByToken:
    """Takes the name that the server's list binds to the token."""

    def __init__(self, tokens: WatchedFile[Tokens], revoked: WatchedFile[frozenset[str]] | None) -> None:
        self._tokens, self._revoked = tokens, revoked

    def authenticate(self, caller: Caller) -> Identity:
        """See Authenticator."""
        scheme, _, token = caller.authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal("no token was shown; get one with `fednc certs token`")
        digest, holder = cred.token_digest(token), cred.holder_of_token(token)
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
            raise Refusal(f"the token of {identity.holder} was taken off the server's list")
        # As the list has it now: what was true when the token was first shown may have been shortened.
        _check_in_force("token", replace(identity, expires=entry.expires), self._revoked)


def _check_in_force(kind: str, identity: Identity, revoked: WatchedFile[frozenset[str]] | None) -> None:
    if revoked and identity.serial in revoked.value:
        raise Refusal(f"the {kind} of {identity.holder} is revoked (serial {identity.serial})")
    if identity.expires <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(identity.expires))
        raise Refusal(f"the {kind} of {identity.holder} expired at {when} UTC; renew it with `fednc certs`")
