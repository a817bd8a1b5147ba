"""HTTP proxies on the way to the server: which one gRPC uses, and how to use none.

gRPC reads `grpc_proxy`, `https_proxy` and `http_proxy`, and `no_grpc_proxy` or `no_proxy` for exceptions. The same
variables are read here so that messages can name the proxy.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from fednc.common.address import is_loopback, parse_address
from fednc.common.errors import ConfigError
from fednc.common.wire.protocol import Options

_PROXIES, _EXCEPTIONS = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")


def proxy_options(server: str, *, direct: bool = False) -> Options:
    """Channel options: no proxy to this machine itself, nor if `direct`."""
    return [("grpc.enable_http_proxy", 0)] if direct or is_loopback(server) else []


def proxy_on_the_way(server: str, *, direct: bool = False) -> str:
    """HOST:PORT of the proxy for `server`, without its password; empty: none."""
    found = next((os.environ[name] for name in _PROXIES if os.environ.get(name)), "")
    if direct or is_loopback(server) or not found:
        return ""
    try:
        host = parse_address(server, "--server").host
        url = urlsplit(found if "//" in found else f"//{found}")
        name = f"{url.hostname}:{url.port or 80}"
    except (ConfigError, ValueError):
        return ""
    exceptions = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    return "" if any(_matches(host, each.strip()) for each in exceptions.split(",")) else name


def _matches(host: str, exception: str) -> bool:
    if not exception:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(exception, strict=False)
    except ValueError:
        return host.lower().endswith(exception.lower())
