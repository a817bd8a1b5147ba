"""`fednc bench fold`: how fast updates are folded, beside how fast this machine copies memory.

Called by the command. Measures the shipped fold in this process, on one thread, as the server runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fednc.common import arrays
from fednc.server.fold import Fold, TensorFold

_FOLD_BYTES, _COPY_BYTES, _PAYLOAD_BYTES = 20, 8, 4  # moved per float32 parameter; the fold also updates its sum
_HELD_BYTES = _PAYLOAD_BYTES + 8 + _PAYLOAD_BYTES  # update, sum, copy
_TILE = 1 << 20
_WEIGHT = 1234


def measure(params: int = 0, repeats: int = 5) -> dict[str, Any]:
    """Best of `repeats` passes over one tensor of `params` float32 values (0: four times the last-level cache)."""
    cache_bytes = last_level_cache()
    size = params or _fitting(4 * cache_bytes // _PAYLOAD_BYTES)
    update = _update(size)
    add_s, checked_s = _add_s(update, repeats), _checked_add_s(update, repeats)
    value = arrays.to_numpy(update)
    target = np.empty_like(value)
    copy_s = _best_s(lambda: np.copyto(target, value), repeats)
    moved, copied = _FOLD_BYTES * size / add_s / 1e9, _COPY_BYTES * size / copy_s / 1e9
    return {
        "params": size,
        "moved_gb_s": round(moved, 3),
        "copy_gb_s": round(copied, 3),
        "ratio": round(moved / copied, 3),
        "payload_gb_s": round(_PAYLOAD_BYTES * size / add_s / 1e9, 3),
        "checked_payload_gb_s": round(_PAYLOAD_BYTES * size / checked_s / 1e9, 3),
        "threads": 1,
        "update_mib": round(_PAYLOAD_BYTES * size / 2**20),
        "last_level_cache_mib": round(cache_bytes / 2**20),
    }


def _update(size: int) -> Array:
    """An update of `size` random values."""
    update = arrays.blank_like(torch.empty(size, device="meta"))
    value = arrays.to_numpy(update)
    tile = np.random.default_rng(0).standard_normal(min(size, _TILE), dtype=np.float32)
    for start in range(0, size, _TILE):
        piece = value[start : start + _TILE]
        piece[...] = tile[: piece.size]
    return update


def _add_s(update: Array, repeats: int) -> float:
    """The fold's own pass, without the check before it."""
    value = arrays.to_numpy(update)
    fold = TensorFold(value.size)
    fold.start(1.0, total_weight=10**6, largest_weight=_WEIGHT)
    return _best_s(lambda: fold.add(value, _WEIGHT), repeats)


def _checked_add_s(update: Array, repeats: int) -> float:
    """A whole update as the strategy folds it: names, shapes, finite values, bounds, then the pass."""
    reference = {"w": arrays.to_tensor(update)}
    record = ArrayRecord()
    record["w"] = update
    fold = Fold(reference)
    fold.start(reference, [_WEIGHT] * (repeats + 1))
    return _best_s(lambda: fold.add(record, _WEIGHT), repeats)


def _best_s(action: Callable[[], object], repeats: int) -> float:
    """Once to touch all memory, then the best time."""
    action()
    times_s = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def last_level_cache() -> int:
    """Bytes of the largest cache that the system reports; 32 MiB where it reports none."""
    found = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20}
    sizes = [path.read_text().strip() for path in found]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=32 << 20)


def _fitting(wanted: int) -> int:
    """As many values as wanted, or as half of the free memory holds."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_bytes = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return min(wanted, free_bytes // 2 // _HELD_BYTES)
