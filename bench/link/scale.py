"""`fednc bench scale`: a thousand clients connect and take part in rounds, each over its own connection.

Called by the command; uses the processes of `fednc bench link`.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from fednc.bench.link.certificates import keys
from fednc.bench.link.driver import Say, Settings, run
from fednc.bench.probe import raise_file_limit
from fednc.common.errors import RunFailedError

_FILES_PER_CLIENT, _FILES_ASIDE = 3, 512  # both ends of a connection, and the spooled upload


def measure(clients: int, params: int, rounds: int, say: Say, tls: str = "off") -> dict[str, Any]:
    """One row; certificates are made before the clock starts.

    Raises:
        RunFailedError: the limit of open files is too low, or a process failed.
    """
    wanted = _FILES_PER_CLIENT * clients + _FILES_ASIDE
    files = raise_file_limit(wanted)
    if files < wanted:
        raise RunFailedError(
            f"{clients} clients need {wanted} open files, the limit is {files}: raise `ulimit -Hn`"
        )
    settings = Settings(
        params=params, clients=clients, rounds=rounds, warmup=1, client_processes=os.cpu_count() or 1, tls=tls
    )
    with keys(tls, clients) as folder:
        started = time.monotonic()
        measured, _ = run(settings, folder)
        total_s = time.monotonic() - started
    round_s = statistics.median(measured["round_s"])
    say(f"{clients} clients: {measured['connect_s']:.1f} s to connect, {round_s:.2f} s per round")
    return {
        "clients": clients,
        "connections": measured["connections"],
        "params": params,
        "client_processes": settings.processes,
        "connect_s": round(measured["connect_s"], 3),
        "kib_per_idle_client": round(1024 * measured["idle_mib"] / clients, 1),
        "round_s": round(round_s, 4),
        "rounds_s": measured["round_s"],
        "total_s": round(total_s, 2),
        "tls": settings.tls,
        "files": files,
    }
