"""Certificates for a benchmark with mutual TLS: one for the server, one for each client.

Used by the benchmarks of the link. Does not use `fednc.common.security.authority`, which rewrites its register for
every certificate: too slow for a thousand of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fednc.common.security import credentials as cred
from fednc.common.security.certificates import KeyPair, issue_to_holder, issue_to_server, make_authority

TLS = ("off", "mtls")
_LIFETIME = timedelta(days=60)  # the server warns in the last month


def name_of(index: int) -> str:
    """The name of client `index` of a benchmark."""
    return f"bench-{index:04}"


@contextmanager
def keys(tls: str, clients: int) -> Iterator[str]:
    """A folder with one folder per client and one called `server`; an empty name if there is no TLS."""
    if tls == "off":
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="fednc-keys-") as folder:
        authority = make_authority("bench", _LIFETIME)
        server = _write(Path(folder, "server"), authority, issue_to_server(authority, ["127.0.0.1"], _LIFETIME))
        server.joinpath(cred.REVOKED).write_text("[]")
        for name in map(name_of, range(clients)):
            made = issue_to_holder(authority, cred.Holder(cred.Role.NODE, name), _LIFETIME)
            _write(Path(folder, name), authority, made)
        yield folder


def _write(folder: Path, authority: KeyPair, made: KeyPair) -> Path:
    folder.mkdir()
    folder.joinpath(cred.CA).write_bytes(authority.cert_pem)
    folder.joinpath(cred.KEY).write_bytes(made.key_pem)
    folder.joinpath(cred.CERT).write_bytes(made.cert_pem)
    return folder
