"""Follows one server: one stream of statuses for all who look at the console, and the operators' commands.

A stream costs the server one status per second while somebody looks, and one every ten seconds otherwise. If the
server does not answer, it is tried again, and the last status stays visible with its age.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fednc.common.errors import FedncError
from fednc.common.peer_text import one_line
from fednc.ops.operator_client import OperatorLink
from fednc.protos import operator_pb2 as pb
from fednc.server.operations.commands import Command

log = logging.getLogger("fednc.console")
_LOOKED_AT_S, _ALONE_S = 1.0, 10.0
_STILL_LOOKING_S = 15.0  # after the last request
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 10.0  # before the next attempt


@dataclass
class ServerWatch:
    """The server's status, kept up to date by `follow`.

    Attributes:
        status: the last one; None: there was none yet.
        problem: why there is no newer one; empty: there is.
    """

    link: OperatorLink
    on_status: Callable[[pb.RunStatus], None] = lambda _: None
    status: pb.RunStatus | None = None
    problem: str = ""
    _heard: float = 0.0
    _looked: float = -1e9
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def age_s(self) -> float:
        """Seconds since the last status; 0 if there was none."""
        return time.monotonic() - self._heard if self._heard else 0.0

    @property
    def is_over(self) -> bool:
        """Whether the last status said that the run is over."""
        return self.status is not None and bool(self.status.over)

    def look(self) -> None:
        """Note that somebody looks at the console."""
        if self._is_alone:
            self._wake.set()
        self._looked = time.monotonic()

    @property
    def _is_alone(self) -> bool:
        return time.monotonic() - self._looked > _STILL_LOOKING_S

    async def follow(self) -> None:
        """Follow the server until cancelled, from run to run."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                await self._stream_until_woken()
                wait_s = _FIRST_WAIT_S
            except Exception as e:  # whatever it is, the console goes on and tries again
                if not isinstance(e, FedncError):
                    log.exception("the server cannot be followed")
                self.problem = one_line(e, 600) or type(e).__name__
                wait_s = min(_LONGEST_WAIT_S, wait_s * 1.5)
            await self._pause(wait_s if self.problem or self.is_over else 0.0)

    async def _pause(self, wait_s: float) -> None:
        """Wait; less, if somebody comes to look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        self._wake.clear()

    async def _stream_until_woken(self) -> None:
        """Read statuses until the run is over or the pace should change. Raises FedncError."""
        tasks = {asyncio.create_task(self._stream()), asyncio.create_task(self._wake.wait())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _stream(self) -> None:
        is_alone = self._is_alone
        async for status in self.link.watch(_ALONE_S if is_alone else _LOOKED_AT_S):
            self._take(status)
            if self._is_alone != is_alone:
                return

    async def ask(self, command: Command, who: str) -> None:
        """Send a command for this person. Raises FedncError."""
        self._take(await self.link.ask(command, who))

    def _take(self, status: pb.RunStatus) -> None:
        self.status, self._heard, self.problem = status, time.monotonic(), ""
        self.on_status(status)
