"""`fednc bench link`: the cost of a round on the shipped link when training costs nothing.

Each row starts a new server process and new client processes. Called by the command. Knows no gRPC.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fednc.bench.link.certificates import keys
from fednc.bench.probe import Child

Row = dict[str, Any]
Say = Callable[[str], None]
_SERVER, _CLIENTS = "fednc.bench.link.server", "fednc.bench.link.clients"
_ENGINES = {"raw": "fednc.bench.link.bare_grpc", "flower": "fednc.bench.link.stock_flower"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One row to measure."""

    params: int
    clients: int
    rounds: int
    warmup: int = 3  # clients keep the blobs of two rounds, so the first three rounds are slower
    codec: str = "fp32"
    tls: str = "off"
    client_processes: int = 0  # 0: one per client, but not more than cores

    @property
    def processes(self) -> int:
        """Number of client processes."""
        return min(self.clients, self.client_processes or os.cpu_count() or 1)


def every(
    params: Sequence[int], clients: Sequence[int], codecs: Sequence[str], tls: Sequence[str], **common: int
) -> list[Settings]:
    """All combinations."""
    mixes = itertools.product(params, clients, codecs, tls)
    return [Settings(params=p, clients=n, codec=c, tls=t, **common) for p, n, c, t in mixes]


def measure(settings: Settings, say: Say) -> Row:
    """One row on our link. Raises RunFailedError if a process fails or a mean is wrong."""
    with keys(settings.tls, settings.clients) as folder:
        result = row("fednc", settings, *run(settings, folder))
    say(
        f"fednc: {settings.params:,} parameters x {settings.clients} clients, {settings.codec}, "
        f"TLS {settings.tls}: {result['round_s']:.4f} s per round"
    )
    return result


def run(settings: Settings, keys_folder: str) -> tuple[Row, list[Row]]:
    """The measurements of the server process and of the client processes. Raises RunFailedError."""
    asked = {
        "params": settings.params,
        "clients": settings.clients,
        "rounds": settings.rounds,
        "warmup": settings.warmup,
        "codec": settings.codec,
        "keys": keys_folder,
    }
    with Child(_SERVER, asked) as server:
        address = f"127.0.0.1:{server.hear()['port']}"
        with start_clients(_CLIENTS, address, settings, keys=keys_folder, codec=settings.codec) as clients:
            return server.hear(), [client.hear() for client in clients]


def compare(settings: Settings, others: Sequence[str], say: Say) -> list[Row]:
    """One row on our link, then one per other engine with `speedup`: its seconds per round over ours."""
    rows = [measure(settings, say)]
    for other in others:
        found = import_module(_ENGINES[other]).measure(settings, rows[0], say)
        rows.append(found | {"speedup": found["round_s"] / rows[0]["round_s"]})
    return rows


@contextlib.contextmanager
def start_clients(module: str, address: str, settings: Settings, **more: Any) -> Iterator[list[Child]]:
    """Start the client processes of a row, each with its share of the clients."""
    ends = [settings.clients * i // settings.processes for i in range(settings.processes + 1)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Child(module, {"server": address, "first": a, "count": b - a, **more}))
            for a, b in itertools.pairwise(ends)
        ]


def row(engine: str, settings: Settings, server: Row, clients: Sequence[Row]) -> Row:
    """A row of results from the measurements of the server and of the client processes (none: not known)."""
    return {
        "engine": engine,
        "params": settings.params,
        "clients": settings.clients,
        "client_processes": settings.processes,
        "connections": server["connections"],
        "codec": settings.codec,
        "tls": settings.tls,
        "checkpoint": False,  # written after the round, so not timed
        "warmup": settings.warmup,
        "round_s": statistics.median(server["round_s"]),
        "rounds_s": server["round_s"],
        "bytes_down": server["bytes_down"],
        "bytes_up": server["bytes_up"],
        "server_peak_rss_mib": server["peak_rss_mib"],
        "client_peak_rss_mib": max((client["peak_rss_mib"] for client in clients), default=None),
        "cpu_s": server["cpu_s"] + sum(client["cpu_s"] for client in clients) if clients else None,
    }
