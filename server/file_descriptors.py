"""Raises the limit on open files, and keeps some of them free for the server's own files.

Every connection takes a file descriptor before the caller is identified. So the number of connections is limited
below the process limit, and the rest is reserved for checkpoints, uploads, logs and models.
"""

from __future__ import annotations

import resource

_MOST = 1 << 20  # if the system sets no limit
_SHARE_KEPT = 4  # one descriptor in this many is kept for the server's own files ...
_LEAST_KEPT, _MOST_KEPT = 64, 4096  # ... but no fewer and no more than these


def raise_limit() -> int:
    """Raise the limit on open files as far as the system allows, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def limit() -> int:
    """How many files this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def kept(files: int) -> int:
    """How many of `files` descriptors are kept for the server's own files."""
    return min(max(_LEAST_KEPT, files // _SHARE_KEPT), _MOST_KEPT)


def connections(files: int) -> int:
    """How many connections a process with `files` descriptors may accept."""
    return max(1, files - kept(files))
