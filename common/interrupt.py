"""Ctrl-C for the commands that serve or attend: the first ends cleanly, the second at once.

Called by the commands and the demo.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from fednc.common.errors import EXIT_INTERRUPTED

log = logging.getLogger("fednc")
T = TypeVar("T")


def run_until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` that turns the first SIGINT or SIGTERM into cancellation and the second into an exit.

    Raises:
        KeyboardInterrupt: it was interrupted and has ended cleanly.
    """
    interrupted = False

    async def guarded() -> T:
        nonlocal interrupted
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                os._exit(EXIT_INTERRUPTED)
            interrupted = True
            log.warning("ending cleanly; press Ctrl-C again to end at once")
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
