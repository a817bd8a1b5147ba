"""A small HTTP server for scrapes, with limits on connections and their duration. Used by `prometheus.py`."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

MOST_CONNECTIONS = 8
CONNECTION_S = 10.0  # for a whole connection, however slow the peer is


class BoundedServer(ThreadingWSGIServer):
    """Closes connections beyond the limit, and those that take too long."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See socketserver."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See socketserver."""
        timer = threading.Timer(CONNECTION_S, _hang_up, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections."""


class QuietHandler(WSGIRequestHandler):
    """Does not log requests, because their text comes from strangers."""

    timeout = CONNECTION_S

    def log_message(self, format: str, *args: Any) -> None:
        """See BaseHTTPRequestHandler."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # already closed
        connection.shutdown(socket.SHUT_RDWR)
