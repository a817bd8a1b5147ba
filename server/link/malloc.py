"""Keeps the C heap of the server process small: one arena only, and freed memory returned to the OS.

gRPC keeps data in flight there. Called at the start of the server and at the end of a batch of work. Does nothing
if the C library is not glibc.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def _function(name: str) -> Callable[..., int]:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return lambda *_: 0
    return found


_mallopt, _trim = _function("mallopt"), _function("malloc_trim")


def use_one_arena() -> None:
    """Use one arena for all threads; gRPC's threads would otherwise create many, each of them fragmented."""
    _mallopt(_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Return freed memory to the OS, before something of a model's size is allocated again."""
    _trim(0)
