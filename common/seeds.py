"""Random streams. Each one is derived from (seed, purpose, round, node); none continues into the next round.

Used by both server and client for everything random. A restarted process draws the same numbers.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose: `derive(seed, "batches", round, node)`.

    The first 63 bits of sha256 over the path. So streams for different purposes are independent, and the value is
    the same on every machine.
    """
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive(seed, *path)`."""
    return torch.Generator().manual_seed(derive(seed, *path))
