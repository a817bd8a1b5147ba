"""`fednc bench scale`: a thousand clients that attend, train and are folded, each over a connection of its own.

Called by the command; the processes are those of `fednc bench link`.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from fednc.bench.link import Say, Settings, start_clients
from fednc.bench.probe import Child, raise_file_limit
from fednc.common.errors import RunFailedError

_FILES_PER_CLIENT, _FILES_ASIDE = 3, 512  # a connection on either side of a process, and the spooled upload


def measure(clients: int, params: int, rounds: int, say: Say) -> dict[str, Any]:
    """One row. Raises RunFailedError where the system lets a process open too few files."""
    started = time.monotonic()
    wanted = _FILES_PER_CLIENT * clients + _FILES_ASIDE
    files = raise_file_limit(wanted)
    if files < wanted:
        raise RunFailedError(
            f"{clients} clients need {wanted} open files, the limit is {files}: raise `ulimit -Hn`"
        )
    settings = Settings(
        params=params, clients=clients, rounds=rounds, warmup=1, client_processes=os.cpu_count() or 1
    )
    asked = {"params": params, "clients": clients, "rounds": rounds, "warmup": settings.warmup}
    with Child("fednc.bench.link_server", asked) as server:
        address = f"127.0.0.1:{server.hear()['port']}"
        with start_clients("fednc.bench.link_clients", address, settings) as processes:
            measured = server.hear()
            for process in processes:
                process.hear()
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
        "total_s": round(time.monotonic() - started, 2),
        "tls": settings.tls,
        "files": files,
    }
