"""A server of ours that runs in a thread of the test."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from typing import Self


class ThreadedServer(ABC):
    """Serves while the block lasts; what it raises before it listens is raised here."""

    def __init__(self) -> None:
        self.ready = threading.Event()  # set by `serve` once it listens
        self._error: Exception | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    @abstractmethod
    async def serve(self) -> None:
        """Serve until cancelled."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.ready.wait(30)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As SIGTERM does."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self.serve())
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self._task
            except Exception as e:
                self._error = e
                self.ready.set()
