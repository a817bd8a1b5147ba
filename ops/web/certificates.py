"""A server's folder of `fednc certs`, checked before a port is opened. Used by the console and `fednc serve`."""

from __future__ import annotations

import time
from pathlib import Path

from fednc.common.errors import ConfigError
from fednc.common.security import credentials
from fednc.common.security.certificates import check_authority, check_pair, names_in

_RENEW = "`fednc certs server --renew` makes another"


def check_server_folder(folder: Path, option: str, *, authority: bool) -> list[str]:
    """The hosts that the certificate names.

    Args:
        option: by which the folder was given, for messages.
        authority: whether the authority's certificate is needed too.

    Raises:
        ConfigError: a file is missing or damaged, or the certificate has expired.
    """
    key, cert = (_content(folder / name, option) for name in (credentials.KEY, credentials.CERT))
    path = folder / credentials.CERT
    try:
        check_pair(cert, key)
        expires = credentials.read_certificate(cert).expires
    except ValueError as e:
        raise ConfigError(f"{path} cannot be used: {e}; {_RENEW}") from e
    if expires <= time.time():
        raise ConfigError(f"{path} has expired; {_RENEW}")
    if authority:
        try:
            check_authority(_content(folder / credentials.CA, option))
        except ValueError as e:
            raise ConfigError(f"{folder / credentials.CA} is not a CA certificate ({e})") from e
    return names_in(cert)


def _content(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; `fednc certs server` makes it, {option} names its folder") from e
