"""`fednc console` as a process: the port, its TLS, and the stream from the server. Called by `cli/console.py`."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednc.common.address import Address, is_loopback, is_wildcard
from fednc.common.errors import ConfigError
from fednc.common.security import credentials
from fednc.ops.console.desk import ConsoleDesk, Sights
from fednc.ops.console.guard import RequestGuard, hosts_of
from fednc.ops.console.logins import ByCredential, ByKey, Entrance, Logins
from fednc.ops.console.routes import Console
from fednc.ops.web.certificates import check_server_folder
from fednc.ops.web.server import http_served

log = logging.getLogger("fednc.console")
_DRAIN_S = 2.0


@dataclass(frozen=True)
class ConsoleSettings:
    """Everything that `fednc console` decides before it starts.

    Attributes:
        access: folder of `fednc certs server`: TLS, and who may log in. None: plaintext and one key.
        hosts: further names by which browsers may call the console.
        insecure: plaintext beyond this machine was asked for.
    """

    sights: Sights
    listen: Address
    access: Path | None = None
    hosts: Sequence[str] = ()
    read_only: bool = False
    insecure: bool = False


async def serve_console(settings: ConsoleSettings, on_listening: Callable[[str, str], None]) -> None:
    """Serve until cancelled. `on_listening` gets the address, and the key to log in with if there is one.

    Raises:
        ConfigError: a file cannot be used, or others could read what is sent.
        AddressError: the port is taken.
    """
    entrance, tls, names = _door(settings)
    desk = ConsoleDesk(settings.sights)
    console = Console(desk, Logins(entrance, read_only=settings.read_only), tls=bool(tls))
    hosts = hosts_of(settings.listen.host, settings.hosts, names)
    app = RequestGuard(console.app(), hosts, tls=bool(tls))
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(http_served(app, settings.listen, tls, _DRAIN_S))
        if desk.watch is not None:
            following = asyncio.create_task(desk.watch.follow())
            stack.callback(following.cancel)
        key = entrance.key if isinstance(entrance, ByKey) else ""
        if is_wildcard(address.host):  # no name that a browser could call
            address = Address(next(iter([*settings.hosts, *names]), "localhost"), address.port)
        on_listening(f"{'https' if tls else 'http'}://{address}", key)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def _door(settings: ConsoleSettings) -> tuple[Entrance, dict[str, Any], list[str]]:
    """Who may log in, uvicorn's TLS settings, and the names in the certificate. Raises ConfigError."""
    if settings.access is None:
        _check_open(settings)
        return ByKey(read_only=settings.read_only), {}, []
    if settings.insecure:
        raise ConfigError("--insecure contradicts --access, which brings TLS; leave one of them out")
    entrance = ByCredential(settings.access)
    names = check_server_folder(settings.access, "--access", authority=True)
    return (
        entrance,
        {
            "ssl_keyfile": str(settings.access / credentials.KEY),
            "ssl_certfile": str(settings.access / credentials.CERT),
            "ssl_ca_certs": str(settings.access / credentials.CA),
            "ssl_cert_reqs": ssl.CERT_OPTIONAL,  # a browser without a certificate may log in with a token
        },
        names,
    )


def _check_open(settings: ConsoleSettings) -> None:
    if is_loopback(str(settings.listen)):
        return
    if not settings.insecure:
        raise ConfigError(
            f"--listen {settings.listen} can be reached from other machines and there are no certificates. Give "
            "--access DIR, the folder that `fednc certs server` made, or ask for plaintext with --insecure"
        )
    log.warning("INSECURE: anyone on the way to %s can read what is sent, the key to log in too", settings.listen)
