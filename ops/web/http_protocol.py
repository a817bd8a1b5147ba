"""uvicorn's HTTP protocol with what a server for strangers also needs: the caller's certificate in the request's
scope, a bound on headers, and a deadline for them.

Used by `server.py`. Knows no path.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CERTIFICATE = "fednc.certificate"  # key of the scope: the caller's certificate, PEM; empty: there is none
_HEADER_BYTES = 32 * 1024
_HEADER_S = 10.0  # from the first byte of a request, or from the connection, to the end of its headers


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _certificate = b""
    _header_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        self._certificate = ssl.DER_cert_to_PEM_cert(der).encode() if der else b""
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._header_bytes = 0
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[CERTIFICATE] = self._certificate
        if self._deadline is None:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        if self._fits(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._fits(len(name) + len(value)):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._stop_waiting()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def _fits(self, more: int) -> bool:
        self._header_bytes += more
        if self._header_bytes > _HEADER_BYTES:
            self.transport.close()
        return self._header_bytes <= _HEADER_BYTES

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(_HEADER_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
