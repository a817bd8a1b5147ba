"""What every request to the console must pass, and what every answer carries: host, origin, headers, session.

Pure ASGI around the pages, so nothing that a page does can forget it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from fednc.common.address import is_wildcard

log = logging.getLogger("fednc.console")
Headers = dict[bytes, bytes]

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_ALWAYS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",  # `no-referrer` would make the origin of our own forms `null`
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
}
_FOR_A_YEAR = b"max-age=31536000"
_LOCAL = ("localhost", "127.0.0.1", "::1")


class RequestGuard:
    """Lets a request through only if it was meant for this console.

    A page of a stranger whose name has been changed to our address (DNS rebinding) sends its own name as host. A
    form on a stranger's page has another origin.
    """

    def __init__(self, app: Any, hosts: Collection[str], *, tls: bool) -> None:
        self._app, self._hosts, self._tls = app, frozenset(hosts), tls

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], dict(scope["headers"]))
        if refusal:
            log.warning("refused: %s", refusal)
            await _answer(self._with_headers(send), 403 if "origin" in refusal else 421, refusal)
            return
        await self._app(scope, receive, self._with_headers(send))

    def _refusal(self, method: str, headers: Headers) -> str:
        host = headers.get(b"host", b"").decode("latin-1")
        if _name_of(host) not in self._hosts:
            return f"this console is not called {host[:80]!r}: name it with --host if it should be"
        if method in ("GET", "HEAD"):
            return ""
        origin = headers.get(b"origin", b"").decode("latin-1")
        site = headers.get(b"sec-fetch-site", b"same-origin")
        own = f"{'https' if self._tls else 'http'}://{host}"
        if (origin and origin.lower() != own.lower()) or site != b"same-origin":
            return f"a form of the origin {origin[:80]!r} cannot act here"
        return ""

    def _with_headers(self, send: Any) -> Any:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = [pair for pair in message["headers"] if pair[0] not in _ALWAYS]
                names = {name for name, _ in given}
                added = dict(_ALWAYS)
                if b"cache-control" not in names:
                    added[b"cache-control"] = b"no-store"
                if self._tls:
                    added[b"strict-transport-security"] = _FOR_A_YEAR
                message = {**message, "headers": [*given, *added.items()]}
            await send(message)

        return sending


def hosts_of(listen: str, more: Collection[str], certificate_hosts: Collection[str]) -> frozenset[str]:
    """The names by which this console may be called."""
    own = set() if is_wildcard(listen) else {listen}
    local = set(_LOCAL) if is_wildcard(listen) or listen in _LOCAL else set()
    return frozenset(name.lower() for name in own | local | set(more) | set(certificate_hosts))


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if the header makes no sense."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").lower() if parts.port != 0 else ""
    except ValueError:
        return ""


async def _answer(send: Any, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
