"""`fednc bench fold`: how fast updates are aggregated, compared with how fast this machine copies memory.

Called by the command. Measures the shipped aggregation in this process, with as many threads as the server uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fednc.common.wire import arrays
from fednc.server.aggregation.mean import Fold
from fednc.server.aggregation.thread_pool import THREADS, spread

_FOLD_BYTES, _COPY_BYTES, _PAYLOAD_BYTES = (
    20,
    8,
    4,
)  # per float32 parameter; the fold also reads and writes its sum
_HELD_BYTES = _PAYLOAD_BYTES + 8 + _PAYLOAD_BYTES  # update, sum, copy
_TILE = 1 << 20
_WEIGHT = 1234


def measure(params: int = 0, repeats: int = 5) -> dict[str, Any]:
    """Best of `repeats` passes over one tensor of `params` float32 values (0: four times the last-level cache)."""
    cache_bytes = last_level_cache()
    size = params or _fitting(4 * cache_bytes // _PAYLOAD_BYTES)
    update = _update(size)
    add_s, checked_s = _fold_s(update, repeats)
    copy_s = _copy_s(arrays.to_numpy(update), repeats)
    moved, copied = _FOLD_BYTES * size / add_s / 1e9, _COPY_BYTES * size / copy_s / 1e9
    return {
        "params": size,
        "moved_gb_s": round(moved, 3),
        "copy_gb_s": round(copied, 3),
        "ratio": round(moved / copied, 3),
        "payload_gb_s": round(_PAYLOAD_BYTES * size / add_s / 1e9, 3),
        "checked_payload_gb_s": round(_PAYLOAD_BYTES * size / checked_s / 1e9, 3),
        "threads": THREADS,
        "update_mib": round(_PAYLOAD_BYTES * size / 2**20),
        "last_level_cache_mib": round(cache_bytes / 2**20),
    }


def _update(size: int) -> Array:
    """An update of `size` random values."""
    update = arrays.blank_record({"w": torch.empty(size, device="meta")})["w"]
    value = arrays.to_numpy(update)
    tile = np.random.default_rng(0).standard_normal(min(size, _TILE), dtype=np.float32)
    for start in range(0, size, _TILE):
        piece = value[start : start + _TILE]
        piece[...] = tile[: piece.size]
    return update


def _fold_s(update: Array, repeats: int) -> tuple[float, float]:
    """Seconds to add an update, without and with all checks (names, shapes, finite values, bounds)."""
    reference = {"w": arrays.to_tensor(update)}
    record = ArrayRecord()
    record["w"] = update
    fold = Fold(reference)
    fold.start(reference, [_WEIGHT] * (2 * repeats + 2))
    values = fold.checked(fold.values(record))
    add_s = _best_s(lambda: fold.add_values(values, _WEIGHT), repeats)
    return add_s, _best_s(lambda: fold.add(record, _WEIGHT), repeats)


def _copy_s(value: NDArray[Any], repeats: int) -> float:
    """Seconds to copy the same array with the same threads."""
    target = np.empty_like(value)
    places = range(0, value.size, _TILE)

    def copy(place: int) -> None:
        np.copyto(target[place : place + _TILE], value[place : place + _TILE])

    return _best_s(lambda: spread(((_TILE, partial(copy, place)) for place in places), enough=_TILE), repeats)


def _best_s(action: Callable[[], object], repeats: int) -> float:
    """The best time, after one run that touches all memory."""
    action()
    times_s = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports, or 32 MiB if it reports none."""
    found = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20}
    sizes = [path.read_text().strip() for path in found]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=32 << 20)


def _fitting(wanted: int) -> int:
    """`wanted`, or as many values as fit into half of the free memory."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_bytes = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(wanted, free_bytes // 2 // _HELD_BYTES)
