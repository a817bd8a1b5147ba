"""Open files: the process may have as many as the system allows, and connections never take the last of them.

A connection costs a descriptor before anybody knows whose it is. So their number is limited below the limit of the
process, and the rest is kept for what the server writes: checkpoints, uploads, logs, models.
"""

from __future__ import annotations

import resource

_MOST = 1 << 20  # where the system sets no limit
_SHARE_KEPT = 4  # one in so many is kept for the server's own files ...
_LEAST_KEPT, _MOST_KEPT = 64, 4096  # ... within these


def raise_limit() -> int:
    """Allow this process as many open files as the system lets it; how many that is."""
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
    """How many connections a process with `files` descriptors may take."""
    return max(1, files - kept(files))
