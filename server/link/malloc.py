"""The C heap of the server process, where gRPC keeps what is in flight: one of it, and no holes after a batch.

Called where the server starts and where a batch of work ends. Does nothing where the C library is not glibc.
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


def keep_together() -> None:
    """One heap for all threads that come: gRPC's would make many, each with holes of its own."""
    _mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """What transfers took and freed goes back to the system, before the next thing of a model's size is made."""
    _trim(0)
