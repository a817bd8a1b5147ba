"""The folder of a certificate authority: what it has issued to whom, and what it has revoked.

Called by `fednc certs` and by demos and tests. The subfolder `server` has all that a server needs, and each folder
below `nodes` and `operators` all that its holder needs. `ca.key` and the register stay in this folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from fednc.common.address import parse_host
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.common.security import credentials
from fednc.common.security.certificates import KeyPair, issue_to_holder, issue_to_server, make_authority

_CA_LIFETIME = timedelta(days=3650)
_PUBLIC, _PRIVATE = 0o644, 0o600


class Issued(BaseModel):
    """A line of the register."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serial: str
    role: str  # node, operator or server
    name: str  # for a server: its hosts
    kind: str  # certificate or token
    expires: float  # seconds since 1970


_REGISTER = TypeAdapter(list[Issued])


class Authority:
    """One authority. Every change happens under a lock on its folder."""

    def __init__(self, folder: Path) -> None:
        """Open an authority. Raises ConfigError if there is none."""
        self._folder = folder
        if not self._key.exists():
            raise ConfigError(f"{folder} contains no certificate authority; `fednc certs init {folder}` makes one")

    @classmethod
    def create(cls, folder: Path, name: str) -> Authority:
        """Make an authority in a folder that has none. Raises ConfigError."""
        if (folder / "ca.key").exists() or (folder / credentials.CA).exists():
            raise ConfigError(f"{folder} already contains a certificate authority; choose another folder")
        (folder / "server").mkdir(parents=True, exist_ok=True, mode=0o700)
        made = make_authority(name, _CA_LIFETIME)
        for place in (folder, folder / "server"):
            write_atomically(place / credentials.CA, made.cert_pem, _PUBLIC)
        write_atomically(folder / "issued.json", b"[]", _PRIVATE)
        # Readable by all on purpose: an administrator rewrites them, and the server's user must be able to read
        # them.
        write_atomically(folder / "server" / credentials.REVOKED, b"[]", _PUBLIC)
        write_atomically(folder / "server" / credentials.TOKENS, b"[]", _PUBLIC)
        write_atomically(folder / "ca.key", made.key_pem, _PRIVATE)
        return cls(folder)

    @property
    def _key(self) -> Path:
        return self._folder / "ca.key"

    @property
    def server_folder(self) -> Path:
        """The folder with all that a server needs."""
        return self._folder / "server"

    def holder_folder(self, holder: credentials.Holder) -> Path:
        """The folder with all that this holder needs."""
        return self._folder / f"{holder.role}s" / holder.name

    def issued(self) -> list[Issued]:
        """Everything issued so far, in order."""
        return _REGISTER.validate_json((self._folder / "issued.json").read_bytes())

    def revoked(self) -> dict[str, credentials.RevokedEntry]:
        """Everything revoked so far, by serial."""
        entries = credentials.REVOKED_LIST.validate_json((self.server_folder / credentials.REVOKED).read_bytes())
        return {entry.serial: entry for entry in entries}

    # ---- issuing -------------------------------------------------------------------------------------------

    def issue_server(self, hosts: Sequence[str], lifetime: timedelta, *, renew: bool = False) -> Path:
        """Issue a certificate to a server with these `hosts`; returns its folder. Raises ConfigError."""
        if not hosts:
            raise ConfigError(
                "--host is missing: the certificate must contain the name or address that clients connect to"
            )
        for host in hosts:
            parse_host(host, "--host", may_be_wildcard=True)
        try:
            return self._certify(
                self.server_folder,
                ("server", ", ".join(hosts)),
                lifetime,
                renew,
                lambda authority, fitting: issue_to_server(authority, hosts, fitting),
            )
        except ValueError as e:
            raise ConfigError(f"--host {', '.join(hosts)}: not a DNS name or an IP address ({e})") from e

    def issue_certificate(self, holder: credentials.Holder, lifetime: timedelta, *, renew: bool = False) -> Path:
        """Issue a certificate to a node or an operator; returns its folder. Raises ConfigError."""
        _check_name(holder.name)
        return self._certify(
            self.holder_folder(holder),
            (holder.role, holder.name),
            lifetime,
            renew,
            lambda authority, fitting: issue_to_holder(authority, holder, fitting),
        )

    def issue_token(self, holder: credentials.Holder, lifetime: timedelta, *, renew: bool = False) -> str:
        """Issue a token to a node or an operator; only its hash is kept here. Raises ConfigError."""
        _check_name(holder.name)
        with self._locked():
            tokens = credentials.TOKEN_LIST.validate_json((self.server_folder / credentials.TOKENS).read_bytes())
            if not renew and any(t.holder == holder and t.serial not in self.revoked() for t in tokens):
                raise ConfigError(f"{holder} already has a token; --renew issues another one, `revoke` revokes it")
            token = credentials.new_token(holder)
            entry = credentials.TokenEntry(
                serial=os.urandom(16).hex(),
                role=holder.role,
                name=holder.name,
                sha256=credentials.token_digest(token),
                expires=time.time() + lifetime.total_seconds(),
            )
            self._register(entry.serial, holder.role, holder.name, "token", entry.expires)
            data = credentials.TOKEN_LIST.dump_json([*tokens, entry], indent=1)
            write_atomically(self.server_folder / credentials.TOKENS, data, _PUBLIC)
        return token

    def write_token(self, holder: credentials.Holder, token: str) -> Path:
        """Write a token into its holder's folder, readable only by its owner; returns the folder."""
        folder = self._prepare(self.holder_folder(holder))
        write_atomically(folder / credentials.TOKEN, token.encode(), _PRIVATE)
        return folder

    def _certify(
        self,
        folder: Path,
        subject: tuple[str, str],
        lifetime: timedelta,
        renew: bool,
        issue: Callable[[KeyPair, timedelta], KeyPair],
    ) -> Path:
        with self._locked():
            if (folder / credentials.CERT).exists() and not renew:
                raise ConfigError(f"{folder} already contains a certificate; --renew replaces it and its key")
            authority = self._authority()
            left = authority.certificate.not_valid_after_utc - datetime.now(UTC)
            made = issue(authority, min(lifetime, left))
            read = credentials.read_certificate(made.cert_pem)
            self._register(read.serial, *subject, "certificate", read.expires)
            self._prepare(folder)
            write_atomically(folder / credentials.KEY, made.key_pem, _PRIVATE)
            write_atomically(folder / credentials.CERT, made.cert_pem, _PUBLIC)
        return folder

    def _authority(self) -> KeyPair:
        return KeyPair.from_pem((self._folder / credentials.CA).read_bytes(), self._key.read_bytes())

    def _prepare(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / credentials.CA, (self._folder / credentials.CA).read_bytes(), _PUBLIC)
        return folder

    def _register(self, serial: str, role: str, name: str, kind: str, expires: float) -> None:
        """Called before the holder gets it, because an entry that is not registered could never be revoked."""
        line = Issued(serial=serial, role=role, name=name, kind=kind, expires=expires)
        data = _REGISTER.dump_json([*self.issued(), line], indent=1)
        write_atomically(self._folder / "issued.json", data, _PRIVATE)

    # ---- revoking ------------------------------------------------------------------------------------------

    def revoke(self, name: str) -> list[Issued]:
        """Revoke everything issued to nodes and operators of this name; returns what was revoked.

        Deletes their files here, so that the name can be used again.

        Raises:
            ConfigError: there is nothing to revoke.
        """
        with self._locked():
            known = self.revoked()
            lines = [line for line in self.issued() if line.role != "server" and line.name == name]
            taken = [line for line in lines if line.serial not in known]
            if not taken:
                raise ConfigError(
                    f"{name!r} has no valid certificate or token; `fednc certs list` shows all names"
                )
            when = datetime.now(UTC).isoformat(timespec="seconds")
            new = [credentials.RevokedEntry(serial=line.serial, name=name, when=when) for line in taken]
            data = credentials.REVOKED_LIST.dump_json([*known.values(), *new], indent=1)
            write_atomically(self.server_folder / credentials.REVOKED, data, _PUBLIC)
            for role in credentials.Role:
                self._forget(credentials.Holder(role, name))
        return taken

    def _forget(self, holder: credentials.Holder) -> None:
        for name in (credentials.CERT, credentials.KEY, credentials.TOKEN):
            (self.holder_folder(holder) / name).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _check_name(name: str) -> None:
    if not credentials.NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid name for a credential: use 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
