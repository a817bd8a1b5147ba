"""Credentials and their files: names in certificates and tokens, lists of tokens and of revocations.

Both ends of the link read them; the authority that issues them writes them. Opens no connection and does not
decide who is refused.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict, TypeAdapter

# One folder per holder, including the server. Files that do not apply are missing.
CA, CERT, KEY, TOKEN = "ca.pem", "cert.pem", "key.pem", "token"
TOKENS, REVOKED = "tokens.json", "revoked.json"

# Names become folders and URIs, so they contain nothing that needs escaping in either.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_URI = re.compile(rf"fednc:(node|operator|viewer):({NAME.pattern})")


class Role(StrEnum):
    """What a holder may do: take part in runs, operate the server, or look at its console and change nothing."""

    NODE = "node"
    OPERATOR = "operator"
    VIEWER = "viewer"


@dataclass(frozen=True)
class Holder:
    """Who a credential was issued to."""

    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"

    @property
    def uri(self) -> str:
        """The name as it appears in a certificate's subject alternative names."""
        return f"fednc:{self.role}:{self.name}"


@dataclass(frozen=True)
class Certificate:
    """The relevant content of a certificate. `expires` is in seconds since 1970."""

    holder: Holder | None
    serial: str
    expires: float
    public_key: bytes = b""  # PEM


@lru_cache(maxsize=4096)
def read_certificate(pem: bytes) -> Certificate:
    """The certificate in `pem`; `holder` is None unless it names exactly one. Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(pem)
    key = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    expires = certificate.not_valid_after_utc.timestamp()
    return Certificate(_holder_of(certificate), f"{certificate.serial_number:x}", expires, key)


def _holder_of(certificate: x509.Certificate) -> Holder | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    found = [match for uri in uris if (match := _URI.fullmatch(uri))]
    return Holder(Role(found[0][1]), found[0][2]) if len(found) == 1 else None


# ---- tokens -----------------------------------------------------------------------------------------------


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenEntry(_Entry):
    """One token in the server's list; only its hash is stored."""

    serial: str
    role: Role
    name: str
    sha256: str
    expires: float

    @property
    def holder(self) -> Holder:
        """Who the token was issued to."""
        return Holder(self.role, self.name)


class RevokedEntry(_Entry):
    """One certificate or token that is no longer valid."""

    serial: str
    name: str
    when: str


TOKEN_LIST = TypeAdapter(list[TokenEntry])
REVOKED_LIST = TypeAdapter(list[RevokedEntry])


def read_revoked(data: bytes) -> frozenset[str]:
    """The serials in a file of revocations. Raises ValueError."""
    return frozenset(entry.serial for entry in REVOKED_LIST.validate_json(data))


def new_token(holder: Holder) -> str:
    """A new token: ROLE.NAME.SECRET, where SECRET has 256 random bits."""
    return f"{holder.role}.{holder.name}.{secrets.token_urlsafe(32)}"


def holder_of_token(token: str) -> Holder | None:
    """Who a token claims to come from; the server's list decides whether that is true."""
    role, _, name = token.rpartition(".")[0].partition(".")
    return Holder(Role(role), name) if role in set(Role) and NAME.fullmatch(name) else None


def token_digest(token: str) -> str:
    """The hash of a token that the server stores.

    A plain sha256 is enough. Slow hashes protect secrets that people choose, but nobody can guess 256 random bits,
    and the server hashes on every call.
    """
    return hashlib.sha256(token.encode()).hexdigest()
