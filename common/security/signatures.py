"""Signed statements: somebody's own key under a text, checked against the authority and its revocations.

Approvals use it. Knows nothing about what a statement means, only who signed it and whether that still counts.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fednc.common.errors import ConfigError, RefusedError
from fednc.common.security import credentials
from fednc.common.security.certificates import KeyPair

_HASH = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class Signature:
    """A signature and the certificate of its key: PEM, and base64 of the ECDSA signature."""

    certificate: str
    value: str

    @property
    def holder(self) -> credentials.Holder | None:
        """Whom the certificate names; None for a server. Not checked against anything. Raises RefusedError."""
        try:
            return credentials.read_certificate(self.certificate.encode()).holder
        except ValueError as e:
            raise RefusedError("the signature's certificate cannot be read") from e


@dataclass(frozen=True)
class Signer:
    """Whoever holds this key."""

    pair: KeyPair

    @classmethod
    def from_folder(cls, folder: Path) -> Signer:
        """The key in a folder that `fednc certs` made. Raises ConfigError."""
        cert, key = folder / credentials.CERT, folder / credentials.KEY
        try:
            return cls(KeyPair.from_pem(cert.read_bytes(), key.read_bytes()))
        except OSError as e:
            raise ConfigError(
                f"{e.filename}: {e.strerror}; signing takes a certificate: `fednc certs node DIR NAME --operator` "
                "makes one (a token cannot sign)"
            ) from e
        except ValueError as e:
            raise ConfigError(f"{cert} and {key} cannot be used to sign: {e}") from e

    @property
    def holder(self) -> credentials.Holder | None:
        """Whom the certificate names; None for a server."""
        return credentials.read_certificate(self.pair.cert_pem).holder

    def sign(self, purpose: str, statement: Mapping[str, str]) -> Signature:
        """Sign a statement. A signature for one purpose is not valid for another."""
        value = self.pair.key.sign(_encoded(purpose, statement), _HASH)
        return Signature(self.pair.cert_pem.decode(), base64.b64encode(value).decode())


@dataclass(frozen=True)
class Trust:
    """Whose signatures count: those of an authority's holders, unless they are revoked.

    Both files are read anew for each check, so a revocation counts at once.
    """

    authority: Path  # PEM
    revoked: Path

    @classmethod
    def from_folder(cls, folder: Path) -> Trust:
        """From a server's folder of `fednc certs`, or from the authority's own. Raises ConfigError."""
        for place in (folder, folder / "server"):
            if (place / credentials.REVOKED).is_file() and (place / credentials.CA).is_file():
                return cls(place / credentials.CA, place / credentials.REVOKED)
        raise ConfigError(
            f"{folder} does not have both {credentials.CA} and {credentials.REVOKED}: give the folder of the "
            "authority that `fednc certs init` made, or its subfolder `server`"
        )

    def check(self, signature: Signature, purpose: str, statement: Mapping[str, str], at: float) -> None:
        """Check a signature that was made at the time `at`, in seconds since 1970.

        Revoked certificates never count, whatever time a statement names: a stolen key can name any time.

        Raises:
            RefusedError: it is not valid, or not of this authority, or its certificate is revoked or was not in
                force.
            ConfigError: our own files cannot be read.
        """
        certificate = _certificate_of(signature)
        serial = f"{certificate.serial_number:x}"
        if not any(_issued_by(certificate, each) for each in self._authorities()):
            raise RefusedError(f"certificate {serial} was not issued by the authority in {self.authority}")
        if serial in self._revoked_serials():
            raise RefusedError(f"certificate {serial} of {_name_of(certificate)} is revoked")
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not begin <= at <= end:
            raise RefusedError(f"certificate {serial} of {_name_of(certificate)} was not in force then")
        verify(signature, purpose, statement)

    def _authorities(self) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self.authority.read_bytes())
        except (OSError, ValueError) as e:
            raise ConfigError(f"{self.authority} is not an authority's certificate: {e}") from e

    def _revoked_serials(self) -> frozenset[str]:
        try:
            return credentials.read_revoked(self.revoked.read_bytes())
        except (OSError, ValueError) as e:
            raise ConfigError(f"{self.revoked} is not a list of revocations: {e}") from e


def verify(signature: Signature, purpose: str, statement: Mapping[str, str]) -> None:
    """Check a signature against its own certificate only. Raises RefusedError."""
    key = _certificate_of(signature).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RefusedError("the signature's certificate has no elliptic-curve key")
    try:
        key.verify(base64.b64decode(signature.value, validate=True), _encoded(purpose, statement), _HASH)
    except (InvalidSignature, ValueError) as e:
        raise RefusedError("the signature does not belong to this statement") from e


def is_of_server(signature: Signature) -> bool:
    """Whether the certificate is a server's. Raises RefusedError: it cannot be read."""
    certificate = _certificate_of(signature)
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usage and signature.holder is None


def now() -> float:
    """Seconds since 1970, to a millisecond, as statements name a time."""
    return round(time.time(), 3)


def _encoded(purpose: str, statement: Mapping[str, str]) -> bytes:
    """The only bytes that stand for a statement: JSON escapes what could end one value and begin another."""
    return (
        f"fednc {purpose} 1\n".encode()
        + json.dumps(dict(statement), sort_keys=True, separators=(",", ":")).encode()
    )


def _certificate_of(signature: Signature) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(signature.certificate.encode())
    except ValueError as e:
        raise RefusedError("the signature's certificate cannot be read") from e


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _name_of(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()
