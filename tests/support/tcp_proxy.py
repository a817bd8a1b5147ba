"""A TCP proxy between a client and the server that can cut connections, drop data and slow down."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

PIECE = 1 << 14


class Proxy:
    """Relays from its own port to `target`, a port on this machine.

    `script` says what to do after that many bytes upwards: `cut` resets the existing connections, `swallow` leaves
    them open and forwards nothing. New connections are relayed normally.
    """

    def __init__(
        self, target: int, script: Sequence[tuple[int, str]] = (), *, up_per_s: float = 0, down_per_s: float = 0
    ) -> None:
        self._target, self._script = target, list(script)
        self._rates = (up_per_s, down_per_s)
        self._up_bytes = 0
        self.done: list[str] = []  # position in the script
        self._swallowing: set[asyncio.StreamWriter] = set()
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._relay, sock=listener, limit=PIECE))
        self._loop.run_forever()

    async def _relay(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE)
        except OSError:
            client.transport.abort()
            return
        self._open[client] = server
        await asyncio.gather(
            self._pass_on(reader, server, client, up=True), self._pass_on(answers, client, client, up=False)
        )
        self._open.pop(client, None)
        for writer in (client, server):
            writer.transport.abort()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: asyncio.StreamWriter, *, up: bool
    ) -> None:
        rate = self._rates[0 if up else 1]
        sink.transport.set_write_buffer_limits(PIECE)
        with suppress(OSError):
            while data := await source.read(PIECE):
                if client in self._swallowing:
                    await asyncio.Event().wait()
                sink.write(data)
                await sink.drain()
                if rate:
                    await asyncio.sleep(len(data) / rate)
                if up:
                    self._count(len(data))
        for writer in (sink, client):
            writer.transport.abort()

    def _count(self, size: int) -> None:
        self._up_bytes += size
        if self._script and self._up_bytes >= self._script[0][0]:
            action = self._script.pop(0)[1]
            if action == "swallow":
                self._swallowing |= set(self._open)
            else:
                for client, server in self._open.items():
                    if client not in self._swallowing:
                        client.transport.abort()
                        server.transport.abort()
            self.done.append(action)

    def close(self) -> None:
        """Stop relaying."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
