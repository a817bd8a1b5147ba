"""Who may open the console: operators, who may act, and viewers, who may only look.

Credentials are those of `fednc certs`, checked as the server checks them: a token, or a certificate that the
browser presents. Without them, on one machine, a key that the console makes at its start takes their place.
Sessions are kept
in memory only: a console that is started again asks for a login again.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fednc.common.errors import ConfigError
from fednc.common.security import credentials
from fednc.common.security.credentials import Role
from fednc.server.access.identity import (
    ByCertificate,
    ByToken,
    Caller,
    Identity,
    Refusal,
    WatchedFile,
    read_tokens,
)

log = logging.getLogger("fednc.console")
IDLE_S, LONGEST_S = 2 * 3600.0, 12 * 3600.0
_MOST_SESSIONS = 500
_FAILURES, _WINDOW_S = 5, 60.0
_MOST_PEERS = 10_000


class LoginRefused(Exception):
    """The login failed; the text is for the person."""


class TooManyLogins(LoginRefused):
    """This peer has failed too often; it may try again after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed logins from your address: try again in {wait_s:.0f} s")
        self.wait_s = wait_s


class Entrance(Protocol):
    """Decides who may log in."""

    wanted: str  # what the login page asks for

    def admit(self, caller: Caller) -> Identity:
        """Raises LoginRefused."""

    def check(self, identity: Identity) -> None:
        """Raises LoginRefused if an identity that was admitted is no longer valid."""


class ByKey:
    """One key, made at the start: whoever can read the console's terminal may log in, as the user who started
    it.
    """

    wanted = "key"

    def __init__(self, *, read_only: bool) -> None:
        self.key = secrets.token_urlsafe(32)
        self._identity = Identity(credentials.Holder(Role.VIEWER if read_only else Role.OPERATOR, _user()))

    def admit(self, caller: Caller) -> Identity:
        """See Entrance."""
        given = caller.authorization.removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise LoginRefused("this is not the key that the console printed when it started")
        return self._identity

    def check(self, identity: Identity) -> None:
        """The key is valid as long as the console runs."""


class ByCredential:
    """An operator's or viewer's token or certificate, from the folder of `fednc certs server`."""

    wanted = "token"

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError: a list in the folder cannot be read."""
        try:
            revoked = WatchedFile(folder / credentials.REVOKED, credentials.read_revoked, log.warning)
            tokens = WatchedFile(folder / credentials.TOKENS, read_tokens, log.warning)
        except (OSError, ValueError) as e:
            raise ConfigError(
                f"--access {folder}: {e}; `fednc certs init` and `certs server` make the folder"
            ) from e
        self._by_token, self._by_certificate = ByToken(tokens, revoked), ByCertificate(revoked)

    def admit(self, caller: Caller) -> Identity:
        """See Entrance. A token counts before a certificate."""
        check = self._by_token if caller.authorization else self._by_certificate
        try:
            identity = check.authenticate(caller)
        except (Refusal, ValueError) as e:
            raise LoginRefused(str(e)) from None
        if identity.holder is None or identity.holder.role is Role.NODE:
            raise LoginRefused(
                f"this credential belongs to {identity.holder}; the console is for operators and viewers "
                "(`fednc certs token DIR NAME --operator` or `--viewer`)"
            )
        return identity

    def check(self, identity: Identity) -> None:
        """See Entrance."""
        try:
            (self._by_certificate if identity.public_key else self._by_token).check(identity)
        except Refusal as e:
            raise LoginRefused(e.reason) from None


@dataclass
class Session:
    """One login.

    Attributes:
        csrf: must be in every form that the session sends.
        notes: sentences to show on the next page.
    """

    identity: Identity
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    notes: list[tuple[str, str]] = field(default_factory=list)
    started: float = field(default_factory=lambda: _now())
    used: float = field(default_factory=lambda: _now())

    @property
    def name(self) -> str:
        """Name of the person."""
        return self.identity.holder.name if self.identity.holder else ""

    @property
    def may_act(self) -> bool:
        """Whether this person may change anything."""
        return self.identity.holder is not None and self.identity.holder.role is Role.OPERATOR

    def touch(self) -> None:
        """Note that the person did something."""
        self.used = _now()

    def is_form_of(self, csrf: str) -> bool:
        """Whether a form with this value comes from a page of this session."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Logins:
    """All sessions. Everything runs on one event loop."""

    def __init__(self, entrance: Entrance, *, read_only: bool = False) -> None:
        self.entrance, self._read_only = entrance, read_only
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def log_in(self, caller: Caller) -> str:
        """Start a session; returns the secret for the cookie. Raises LoginRefused."""
        peer = _network(caller.peer)
        self._check_pace(peer)
        try:
            identity = self.entrance.admit(caller)
        except LoginRefused as e:
            self._note_failure(peer)
            log.warning("login from %s refused: %s", caller.peer, e)
            raise
        self._failures.pop(peer, None)
        secret = secrets.token_urlsafe(32)
        self._sessions[_digest(secret)] = Session(identity)
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        log.info("%s logged in from %s", identity.holder, caller.peer)
        return secret

    def find(self, secret: str) -> Session | None:
        """The session of a cookie, if it is still valid. Its credential is checked again each time."""
        session = self._sessions.get(_digest(secret)) if secret else None
        if session is None:
            return None
        now = _now()
        try:
            self.entrance.check(session.identity)
            is_valid = now - session.used < IDLE_S and now - session.started < LONGEST_S
        except LoginRefused as e:
            log.warning("%s is logged out: %s", session.identity.holder, e)
            is_valid = False
        if not is_valid:
            self.log_out(secret)
            return None
        return session

    def may_act(self, session: Session) -> bool:
        """Whether the person may change anything here."""
        return session.may_act and not self._read_only

    def log_out(self, secret: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(secret), None)

    def _check_pace(self, peer: str) -> None:
        failed = self._failures.get(peer, deque())
        while failed and failed[0] < _now() - _WINDOW_S:
            failed.popleft()
        if len(failed) >= _FAILURES:
            raise TooManyLogins(failed[0] + _WINDOW_S - _now())

    def _note_failure(self, peer: str) -> None:
        self._failures.setdefault(peer, deque()).append(_now())
        self._failures.move_to_end(peer)
        while len(self._failures) > _MOST_PEERS:
            self._failures.popitem(last=False)


def _now() -> float:
    return time.monotonic()


def _digest(secret: str) -> str:
    """What a session is found by: comparing hashes says nothing about the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _network(peer: str) -> str:
    """Who counts as one peer: an IPv4 address, or the /64 that one machine of IPv6 usually has."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return peer
    if address.ipv4_mapped:  # how a port for both names an IPv4 address
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


def _user() -> str:
    try:
        found = getpass.getuser()
    except (OSError, KeyError):
        found = ""
    return found if credentials.NAME.fullmatch(found) else "local"
