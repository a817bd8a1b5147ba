"""Handling of Ctrl-C and SIGTERM for all commands: while they load, while they run, and when a thread is stuck.

Called by the commands and the demo. Imports nothing heavy, because it must be in place before anything else loads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

from fednc.common.errors import EXIT_INTERRUPTED

log = logging.getLogger("fednc")
T = TypeVar("T")
STOP_S = 10.0


def end_at_once_while_loading() -> None:
    """Let SIGINT and SIGTERM end the process at once, without a traceback, until a command changes that.

    Handlers are needed from the start: a signal without one does not end the first process of a container.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_at_once)


def interrupt_as_usual() -> None:
    """From now on both signals raise KeyboardInterrupt, for commands that have something to clean up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, signal.default_int_handler)


def run_until_interrupted(
    main: Coroutine[Any, Any, T],
    *,
    stop_s: float = STOP_S,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """As `asyncio.run`, but the first SIGINT or SIGTERM cancels `main` and the second one exits.

    A stuck thread, for example one that reads from a network share, could block a clean end for ever. So the
    process exits after `stop_s` in any case.

    Raises:
        KeyboardInterrupt: `main` was interrupted and has ended cleanly.
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
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if not _others_are_alive():
            watchdog.cancel()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report errors that nobody awaits, except calls that were cancelled because the server ended."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _leave_behind(stop_s: float) -> None:
    """Runs in its own thread, because both the event loop and the interpreter's shutdown may be blocked."""
    log.error("did not end within %g s because something is stuck (a data source?); exiting anyway", stop_s)
    _exit()


def _others_are_alive() -> bool:
    """Whether the interpreter would wait for other threads before it exits."""
    return any(not each.daemon for each in threading.enumerate() if each is not threading.current_thread())


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    _exit()


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            getattr(stream, "drain", stream.flush)()  # the command's console has `drain`, other streams do not
        except (
            AttributeError,
            OSError,
            ValueError,
            RuntimeError,
        ):  # RuntimeError: it is being written to
            continue
    os._exit(EXIT_INTERRUPTED)
