"""Imports everything once, then forks one `fednc` process per order, to save the start-up time of each.

Reads orders as JSON lines from stdin; writes `{"pid": ...}` and `{"pid": ..., "code": ...}` to stdout. The forks
are real processes with their own command line, environment and log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from importlib import import_module
from typing import Any

MODULES = (
    "fednc.cli.client",
    "fednc.cli.live",
    "fednc.cli.server",
    "fednc.client.app.flower_app",
    "fednc.client.app.host",
    "fednc.client.link.link",
    "fednc.common.process.interrupt",
    "fednc.tasks.image.task",
    "fednc.server.main",
)
alive: set[int] = set()


def say(**words: Any) -> None:
    os.write(1, (json.dumps(words) + "\n").encode())


def reap(*_: Any) -> None:
    while alive:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # this handler interrupted itself, and the inner call reaped the last one
            return
        if not pid:
            return
        alive.discard(pid)
        say(pid=pid, code=os.waitstatus_to_exitcode(status))


def become(order: dict[str, Any]) -> None:
    """Turn this process into `fednc` with the order's arguments."""
    from fednc.cli.main import run

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["env"])
    if order["skew_s"]:
        real = time.time
        time.time = lambda: real() + order["skew_s"]
    sys.argv = ["fednc", *order["args"]]
    code = 1
    try:
        run()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for module in [*MODULES, *sys.argv[1:]]:
        import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "only a process with one thread can be forked"
    signal.signal(signal.SIGCHLD, reap)
    say(ready=True)
    for line in sys.stdin:
        with_child = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, with_child)
            become(json.loads(line))
        alive.add(pid)
        say(pid=pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, with_child)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
    os._exit(0)  # tearing down all those modules takes seconds if many processes share few cores
