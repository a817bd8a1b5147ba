"""Ctrl-C and SIGTERM for all commands: while they load, while they serve or attend, and when a thread is stuck.

Called by the commands and the demo. Imports nothing heavy: it is in place before anything else is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from fednc.common.errors import EXIT_INTERRUPTED

log = logging.getLogger("fednc")
T = TypeVar("T")
STOP_S = 10.0


def end_at_once_while_loading() -> None:
    """Until a command says otherwise SIGINT and SIGTERM end the process at once, without a traceback.

    They have handlers from the start, because the first process of a container is not ended by a signal that it
    does not handle.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_at_once)


def interrupt_as_usual() -> None:
    """From now on both raise KeyboardInterrupt, for commands that have something to clean up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, signal.default_int_handler)


def run_until_interrupted(main: Coroutine[Any, Any, T], *, stop_s: float = STOP_S) -> T:
    """`asyncio.run` that turns the first SIGINT or SIGTERM into cancellation and the second into an exit.

    A clean end may be held up for ever by a thread, for instance one that reads from a network share. After
    `stop_s` the process ends without it.

    Raises:
        KeyboardInterrupt: it was interrupted and has ended cleanly.
    """
    interrupted = False
    watchdog = threading.Timer(stop_s, _leave_behind, [stop_s])
    watchdog.daemon = True

    async def guarded() -> T:
        nonlocal interrupted
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                _exit()
            interrupted = True
            watchdog.start()
            log.warning("ending cleanly; press Ctrl-C again to end at once")
            task.cancel()

        loop.set_exception_handler(_report)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if not _others_are_alive():
            watchdog.cancel()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What goes wrong where nobody awaits it. A call that was cut when the server ended is no error of anybody."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _leave_behind(stop_s: float) -> None:
    """Runs in a thread of its own: the event loop may be waiting, and so may the end of the interpreter."""
    log.error("did not end within %g s, as something is stuck (a data source?); ending without it", stop_s)
    _exit()


def _others_are_alive() -> bool:
    """Whether the interpreter would wait for other threads before it ends."""
    return any(not each.daemon for each in threading.enumerate() if each is not threading.current_thread())


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    _exit()


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            getattr(stream, "drain", stream.flush)()  # of the command's console; any other stream has `flush`
        except (AttributeError, OSError, ValueError, RuntimeError):  # the last: it was being written to just now
            continue
    os._exit(EXIT_INTERRUPTED)
