"""Makes certificates for authorities, servers and holders. Elliptic curve P-256, X.509 v3.

Called by `authority.py`, which keeps them in a folder. Knows no files.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednc.common.security.credentials import Holder

_BACKDATED = timedelta(days=1)  # a peer's clock may be behind


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM, not encrypted, because services start unattended."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @classmethod
    def from_pem(cls, cert_pem: bytes, key_pem: bytes) -> KeyPair:
        """Read a pair. Raises ValueError if it is not PEM, has another kind of key, or does not match."""
        check_pair(cert_pem, key_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("its key is not an elliptic-curve key")
        return cls(x509.load_pem_x509_certificate(cert_pem), key)


def check_pair(cert_pem: bytes, key_pem: bytes) -> None:
    """Raises ValueError unless both are PEM, unencrypted, and belong together; the key may be of any kind."""
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except TypeError as e:
        raise ValueError(
            "the key is encrypted, and a service cannot ask for a password: store it decrypted "
            "(openssl pkey -in KEY -out NEW), readable only by its user"
        ) from e
    except UnsupportedAlgorithm as e:
        raise ValueError(f"this kind of key is not supported: {e}") from e
    if key.public_key() != x509.load_pem_x509_certificate(cert_pem).public_key():
        raise ValueError("certificate and key do not belong together")


def check_authority(pem: bytes) -> None:
    """Raises ValueError if it is not PEM or contains no certificate."""
    if not x509.load_pem_x509_certificates(pem):
        raise ValueError("it contains no certificate")


def names_in(pem: bytes) -> list[str]:
    """The hosts that a server's certificate names: DNS names, then IP addresses. Raises ValueError: no PEM."""
    try:
        extensions = x509.load_pem_x509_certificate(pem).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def make_authority(name: str, lifetime: timedelta) -> KeyPair:
    """A self-signed authority that may only sign end certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _signed(key, _builder(name, name, key, lifetime, authority=True), key)


def issue_to_server(authority: KeyPair, hosts: Sequence[str], lifetime: timedelta) -> KeyPair:
    """A certificate for a server with these `hosts` (DNS names or IP addresses)."""
    names = [_general_name(host) for host in hosts]
    return _issue(authority, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, lifetime)


def issue_to_holder(authority: KeyPair, holder: Holder, lifetime: timedelta) -> KeyPair:
    """A certificate with which a node or an operator proves its identity."""
    names = [x509.UniformResourceIdentifier(holder.uri)]
    return _issue(authority, holder.name, names, ExtendedKeyUsageOID.CLIENT_AUTH, lifetime)


def _issue(
    authority: KeyPair,
    subject: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    lifetime: timedelta,
) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = (
        _builder(subject, str(issuer), key, lifetime, authority=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    return _signed(key, builder, authority.key)


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, lifetime: timedelta, *, authority: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    # The subject is only for display (X.509 allows 64 characters); the alternative names are what is checked.
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(subject))
        .issuer_name(_common_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(_key_usage(authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    key: ec.EllipticCurvePrivateKey, builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey
) -> KeyPair:
    return KeyPair(builder.sign(signer, hashes.SHA256()), key)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
