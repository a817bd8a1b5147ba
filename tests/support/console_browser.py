"""A console in a thread, a plain HTTP client that keeps cookies as a browser does, and Chromium."""

from __future__ import annotations

import html
import http.client
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fednc.bench.chromium import ask, draw, login_link
from fednc.common.address import Address
from fednc.ops.console.desk import Sights
from fednc.ops.console.service import ConsoleSettings, serve_console
from support.threaded_server import ThreadedServer


class RunningConsole(ThreadedServer):
    """`fednc console` in a thread of the test."""

    def __init__(self, sights: Sights, **settings: Any) -> None:
        super().__init__()
        self._settings = ConsoleSettings(sights, settings.pop("listen", Address("127.0.0.1", 0)), **settings)
        self.address, self.key = "", ""

    async def serve(self) -> None:
        await serve_console(self._settings, self._listens)

    def _listens(self, address: str, key: str) -> None:
        self.address, self.key = address, key
        self.ready.set()

    def visitor(self, context: ssl.SSLContext | None = None) -> Visitor:
        """A browser that is not logged in."""
        return Visitor(self.address, context)

    def logged_in(self) -> Visitor:
        """A browser that has used the key."""
        visitor = self.visitor()
        assert visitor.log_in(self.key).status == 303
        return visitor


@dataclass
class Page:
    """An answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def csrf(self) -> str:
        """Of the page's first form."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.text)
        assert found, self.text
        return html.unescape(found[1])


@dataclass
class Visitor:
    """A client that keeps cookies and follows nothing."""

    address: str
    context: ssl.SSLContext | None = None
    cookies: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> Page:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, **fields: str) -> Page:
        """A form; fields whose names begin with `header_` are headers."""
        headers = {
            key.removeprefix("header_"): fields.pop(key) for key in list(fields) if key.startswith("header_")
        }
        return self.ask("POST", path, urlencode(fields), **headers)

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Page:
        place = urlsplit(self.address)
        connection = (
            http.client.HTTPSConnection(str(place.hostname), place.port, timeout=30, context=self.context)
            if place.scheme == "https"
            else http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
        )
        sent = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            page = Page(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()
        for name, value in page.headers:
            if name.lower() == "set-cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0].strip('"')
        return page

    def log_in(self, secret: str = "", **more: str) -> Page:
        """Fill in the login form."""
        form = self.get("/login")
        return self.post("/login", csrf=form.csrf, secret=secret, **more)

    def act(self, action: str, **more: str) -> Page:
        """Press a button of the run's page."""
        return self.post("/act", csrf=self.get("/").csrf, action=action, **more)


@dataclass
class Seen:
    """What Chromium made of a page: its elements after the scripts ran, and what it complained about."""

    dom: str
    log: str

    @property
    def complaints(self) -> list[str]:
        """Errors of scripts, and what the policy of the page refused."""
        return [line for line in self.log.splitlines() if "CONSOLE" in line]


def look(
    console: RunningConsole,
    path: str,
    *,
    width: int = 1440,
    height: int = 1200,
    dark: bool = False,
    to: Path | None = None,
) -> Seen:
    """Let Chromium log in by the link and open a page; with `to`, also draw it there as PNG."""
    link = login_link(console.address, console.key, path)
    found = ask(link, ["--dump-dom", f"--window-size={width},{height}"], dark=dark)
    assert to is None or draw(link, to, width=width, height=height, dark=dark)
    return Seen(found.stdout, found.stderr)
