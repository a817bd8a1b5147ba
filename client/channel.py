"""The channel to the server: how it is protected, and what it means when it cannot be opened.

Used by the link. Knows nothing of sessions or work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from fednc.common import credentials as cred
from fednc.common.certificates import check_pair
from fednc.common.errors import AddressError, ConfigError, FedncError, RefusedError
from fednc.common.wire import LONG_TEXT, channel_options, is_loopback, one_line

# What core gRPC says when the server's certificate is not accepted -> what that means.
_HANDSHAKE = {
    "Hostname Verification": "the server's certificate is not for this host; dial a name or address that it lists",
    "certificate has expired": "the server's certificate has expired; the operator must renew it",
    "WRONG_VERSION_NUMBER": "the server speaks plaintext; ask its operator, or leave the certificates out",
    "unsupported certificate purpose": "the certificate that the server shows is not one of a server",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not of the authority in {ca}",
    "BAD_SIGNATURE": "the server's certificate is not of the authority in {ca}",
}
# The server refused us in the handshake, where no reason can travel.
_CLOSED = ("Socket closed", "Connection reset", "Broken pipe")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Files that protect the channel and say who we are; read anew at every connection, so renewed ones count."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    token: Path | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Credentials:
        """What `fednc certs node` or `fednc certs token` put there; a certificate comes before a token."""
        if (folder / cred.CERT).exists():
            return cls(ca=folder / cred.CA, cert=folder / cred.CERT, key=folder / cred.KEY)
        if (folder / cred.TOKEN).exists():
            return cls(ca=folder / cred.CA, token=folder / cred.TOKEN)
        raise ConfigError(
            f"{folder} holds neither {cred.CERT} nor {cred.TOKEN}: copy the folder that `fednc certs node` made"
        )

    @property
    def holder(self) -> cred.Holder | None:
        """Whom they speak for. Raises ConfigError."""
        if self.cert:
            return self._certificate().holder
        return cred.holder_of_token(_read(self.token).decode().strip()) if self.token else None

    @property
    def has_expired(self) -> bool:
        """Whether our own certificate has, by this machine's clock."""
        return bool(self.cert) and self._certificate().expires <= time.time()

    def for_channel(self) -> grpc.ChannelCredentials:
        """What gRPC needs of them. Raises ConfigError."""
        authority = _read(self.ca)
        if self.cert:
            return grpc.ssl_channel_credentials(authority, *self._pair())
        tls = grpc.ssl_channel_credentials(authority)
        if not self.token:
            return tls
        token = grpc.access_token_call_credentials(_read(self.token).decode().strip())
        return grpc.composite_channel_credentials(tls, token)

    def _certificate(self) -> cred.Certificate:
        try:
            return cred.read_certificate(_read(self.cert))
        except ValueError as e:
            raise ConfigError(f"{self.cert} is no certificate: {e}") from e

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
        ConfigError: the options contradict each other or leave the link open by accident.
    """
    given = [option for option in (certs, ca, cert, key, token) if option]
    if insecure and given:
        raise ConfigError(f"--insecure is plaintext, where {given[0]} would not be used; leave one of them out")
    if certs:
        return Credentials.from_folder(certs)
    if given:
        if ca is None or (cert is None) != (key is None):
            raise ConfigError("--cert and --key go together, and --ca is always needed with them or a token")
        return Credentials(ca=ca, cert=cert, key=key, token=token)
    if not insecure and not is_loopback(server):
        raise ConfigError(
            f"--server {server} is another machine and there is no certificate. Give --certs DIR with the folder "
            "that `fednc certs node` made for this client, or --insecure for plaintext"
        )
    return None


def open_channel(server: str, credentials: Credentials | None, liveness_s: float) -> grpc.aio.Channel:
    """A channel; plaintext without credentials. Raises ConfigError."""
    options = channel_options(liveness_s)
    if credentials is None:
        return grpc.aio.insecure_channel(server, options=options)
    return grpc.aio.secure_channel(server, credentials.for_channel(), options=options)


def explain(error: grpc.aio.AioRpcError, credentials: Credentials | None) -> str:
    """What a failed connection means, for people."""
    details = error.details() or ""
    for sign, meaning in _HANDSHAKE.items():
        if sign in details:
            return meaning.format(ca=credentials.ca if credentials else "--ca")
    if _was_hung_up_on(error):
        return f"the server closed the connection before it answered; {_likely(credentials)}"
    return error.code().name.lower().replace("_", " ")


def as_error(error: grpc.aio.AioRpcError, server: str, credentials: Credentials | None) -> FedncError:
    """A failed call of a command that does not try again."""
    details = one_line(error.details() or error.code().name, LONG_TEXT)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        if is_expired_refusal(error, credentials):
            return RefusedError("this certificate has expired; `fednc certs ... --renew` makes another")
        return AddressError(f"no answer from {server}: {explain(error, credentials)}")
    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        return ConfigError(details)
    return RefusedError(details)


def is_expired_refusal(error: grpc.aio.AioRpcError, credentials: Credentials | None) -> bool:
    """Whether the server hung up on a certificate of ours that has expired: TLS lets it give no reason."""
    return _was_hung_up_on(error) and credentials is not None and credentials.has_expired


def _was_hung_up_on(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return "failed to connect" in details and any(sign in details for sign in _CLOSED)


def _likely(credentials: Credentials | None) -> str:
    if credentials is None:
        return "it was stopped, or it asks for TLS (--certs)"
    if credentials.cert:
        return f"it was stopped, or it does not accept {credentials.cert}"
    return "it was stopped, or it asks for a certificate (--cert and --key)"


def _read(path: Path | None) -> bytes:
    assert path is not None
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; `fednc certs node` makes all that a client needs") from e
