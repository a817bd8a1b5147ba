"""One parser of HOST:PORT for every option and key that takes an address, with hints for common mistakes; and what
may be shown of the URL of a storage.

Used by both ends of the link, and by whatever opens a storage. Opens no connection and resolves no names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote

from fednc.common.errors import ConfigError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PORTS = 65535
HIDDEN = "***"


@dataclass(frozen=True)
class Address:
    """A host and a port. `host` is a DNS name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, option: str, *, may_choose_port: bool = False) -> Address:
    """Parse HOST:PORT. `option` is where it was given, for the error message; `may_choose_port` allows port 0.

    Raises:
        ConfigError: `text` is not HOST:PORT. The message says what to write instead, where that is clear.
    """
    shown = (text if text.isprintable() else repr(text)) or "(empty)"
    given = f"{option} {shown}" if option else shown
    bare = _without_url(text)
    if bare != text:
        hint = f": write {bare}" if re.search(r"[^:]:[0-9]+$", bare) else ""
        raise ConfigError(f"{given}: expected only HOST:PORT{hint}")
    host, colon, port = text.rpartition(":")
    if _is_ipv6(text) or (":" in host and not host.startswith("[")):
        raise ConfigError(f"{given}: an IPv6 address needs brackets: {_bracketed(text)}")
    if not colon or text.endswith("]"):
        host = text if text and text.isprintable() else "HOST"
        raise ConfigError(f"{given}: the port is missing: write {host}:8440 (8440 is the usual port)")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _PORTS or (int(port) == 0 and not may_choose_port):
        lowest = 0 if may_choose_port else 1
        raise ConfigError(f"{given}: the port is {port!r}; expected a number from {lowest} to {_PORTS}")
    if host.startswith("["):
        if not (host.endswith("]") and _is_ipv6(host[1:-1])):
            raise ConfigError(f"{given}: {host} is not an IPv6 address in brackets; expected e.g. [::1]:8440")
        return Address(host[1:-1], int(port))
    return Address(parse_host(host, given), int(port))


def parse_host(text: str, option: str, *, may_be_wildcard: bool = False) -> str:
    """A DNS name or an IP address without a port. Raises ConfigError."""
    given = f"{option} {text}".strip() if text not in option else option
    name = text.removeprefix("*.") if may_be_wildcard else text
    if _is_ip(text) or (
        name and len(name) <= 253 and all(map(_LABEL.fullmatch, name.removesuffix(".").split(".")))
    ):
        if re.fullmatch(r"[0-9.]+", text) and not _is_ip(text):
            raise ConfigError(f"{given}: {text} is not an IP address")
        return text
    if _without_url(text) != text:
        raise ConfigError(f"{given}: expected a DNS name or an IP address, not a URL")
    if re.fullmatch(r"\[[^]]*\](:[0-9]+)?|[^:\[\]]+:[0-9]*", text):
        host = text.rpartition("]")[0].removeprefix("[") or text.rpartition(":")[0]
        raise ConfigError(f"{given}: expected a host without port or brackets: write {host}")
    raise ConfigError(f"{given}: {text!r} is not a DNS name or an IP address")


def without_secrets(text: str, url: str) -> str:
    """A text that may hold the URL of a storage, without the password in that URL and the values of its query.

    Everything that is shown to people or written for programs goes through this. It rather hides too much: a
    password may hold any sign.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return text
    before, at, host = rest.rpartition("@")
    user, colon, password = before.partition(":")
    host, question, query = (host if at else rest).partition("?")
    hidden = f"{scheme}://{user}{colon}{HIDDEN if colon else ''}{at}{host}{question}{HIDDEN if question else ''}"
    secrets = [password, *(value for pair in query.split("&") if (value := pair.partition("=")[2]))]
    text = text.replace(url, hidden)
    for secret in sorted({form for one in secrets for form in (one, unquote(one)) if one}, key=len, reverse=True):
        text = text if secret in hidden else text.replace(secret, HIDDEN)
    return text


def is_wildcard(host: str) -> bool:
    """Whether a server that listens on `host` listens on all addresses: no name to call it by."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can only be reached from its own machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_url(text: str) -> str:
    return re.sub(r"/.*$", "", re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:/+", "", text))


def _bracketed(text: str) -> str:
    """What the user probably meant: the last group is the port if the rest is an address without it."""
    host, _, port = text.rpartition(":")
    if _is_ipv6(host) and re.fullmatch(r"[0-9]{1,5}", port):
        return f"write [{host}]:{port}"
    return f"write [{text}]:8440" if _is_ipv6(text) else "write [HOST]:PORT"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    return ":" in text and _is_ip(text)
