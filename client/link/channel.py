"""The channel to the server: its credentials, and the proxy on the way.

Used by the link, the dry run and operators' commands. Knows nothing about attendances or work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from fednc.client.link.http_proxy import proxy_options
from fednc.common.address import is_loopback, parse_address
from fednc.common.errors import ConfigError
from fednc.common.security import credentials as cred
from fednc.common.security.certificates import check_authority, check_pair
from fednc.common.wire.protocol import channel_options


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Files that secure the channel and identify this client; read again for each connection."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    token: Path | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Credentials:
        """The files that `fednc certs node` or `fednc certs token` made; a certificate is preferred to a token."""
        if (folder / cred.CERT).exists():
            return cls(ca=folder / cred.CA, cert=folder / cred.CERT, key=folder / cred.KEY)
        if (folder / cred.TOKEN).exists():
            return cls(ca=folder / cred.CA, token=folder / cred.TOKEN)
        raise ConfigError(
            f"{folder} has neither {cred.CERT} nor {cred.TOKEN}: copy the folder that `fednc certs node` made"
        )

    @property
    def holder(self) -> cred.Holder | None:
        """Whom they identify. Raises ConfigError."""
        if self.cert:
            return self._certificate().holder
        return cred.holder_of_token(self._token()) if self.token else None

    @property
    def has_expired(self) -> bool:
        """Whether our own certificate has expired by this machine's clock; False if it cannot be read."""
        try:
            return bool(self.cert) and self._certificate().expires <= time.time()
        except ConfigError:
            return False

    def for_channel(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises ConfigError."""
        authority = self._authority()
        if self.cert:
            return grpc.ssl_channel_credentials(authority, *self._pair())
        tls = grpc.ssl_channel_credentials(authority)
        if not self.token:
            return tls
        return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(self._token()))

    def _authority(self) -> bytes:
        authority = _read(self.ca)
        try:
            check_authority(authority)
        except ValueError as e:
            raise ConfigError(
                f"{self.ca} is not an authority's certificate ({e}); use the ca.pem that `fednc certs` made"
            ) from e
        return authority

    def _token(self) -> str:
        token = _read(self.token).decode(errors="replace").strip()
        if not token.isascii() or cred.holder_of_token(token) is None:
            raise ConfigError(f"{self.token} has no token in it; copy it again; `fednc certs token` made it")
        return token

    def _certificate(self) -> cred.Certificate:
        try:
            return cred.read_certificate(_read(self.cert))
        except ValueError as e:
            raise ConfigError(f"{self.cert} is not a certificate: {e}") from e

    def _pair(self) -> tuple[bytes, bytes]:
        key, cert = _read(self.key), _read(self.cert)
        try:
            check_pair(cert, key)
        except ValueError as e:
            raise ConfigError(f"{self.cert} and {self.key} cannot be used: {e}") from e
        return key, cert


def credentials_from(
    server: str,
    *,
    certs: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    token: Path | None = None,
    insecure: bool = False,
) -> Credentials | None:
    """What the options of a command ask for; None is plaintext.

    Raises:
        ConfigError: the address is not valid, or the options contradict each other or leave the link unprotected
            by accident.
    """
    parse_address(server, "--server")
    given = [option for option in (certs, ca, cert, key, token) if option]
    if insecure and given:
        raise ConfigError(f"--insecure means plaintext, which does not use {given[0]}; leave one of them out")
    if certs:
        return Credentials.from_folder(certs)
    if given:
        if ca is None or (cert is None) != (key is None):
            raise ConfigError("--cert and --key go together, and both they and a token need --ca")
        return Credentials(ca=ca, cert=cert, key=key, token=token)
    if not insecure and not is_loopback(server):
        raise ConfigError(
            f"--server {server} is another machine and there is no certificate. Give --certs DIR with the folder "
            "that `fednc certs node` made for this client, or --insecure for plaintext"
        )
    return None


class ForChannel(Protocol):
    """Credentials for a channel."""

    def for_channel(self) -> grpc.ChannelCredentials | None:
        """None is plaintext. Raises ConfigError."""


def open_channel(
    server: str, credentials: ForChannel | None, liveness_s: float, *, direct: bool = False
) -> grpc.aio.Channel:
    """A channel: plaintext without credentials, no proxy if `direct`. Raises ConfigError."""
    options = [*channel_options(liveness_s), *proxy_options(server, direct=direct)]
    found = credentials.for_channel() if credentials else None
    if found is None:
        return grpc.aio.insecure_channel(server, options=options)
    return grpc.aio.secure_channel(server, found, options=options)


def _read(path: Path | None) -> bytes:
    assert path is not None
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; copy the folder that `fednc certs node` made") from e
