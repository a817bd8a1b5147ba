"""An exclusive lock on a run folder, so that only one server uses it. Taken before anything in it is touched.

It is a kernel lock, which is released when the process ends, however that happens. The file `lock` stays and names
the process that held it last.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fednc.common.errors import AddressError

LOCK = "lock"
_TRIES, _TRY_AGAIN_S = 5, 0.02


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` while the block runs.

    Raises:
        AddressError: another process uses it.
        OSError: the folder cannot be written to.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            _lock(handle)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise AddressError(
                f"the run folder {folder} is in use by {holder}: another server serves it. "
                "Stop that one first, or give this one another --folder"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
        fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked in the meantime may have a copy of the handle
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Take the lock, with a few tries: `fednc runs` holds it for a moment to see whether anybody does.

    Raises:
        BlockingIOError: another process keeps it.
    """
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_TRY_AGAIN_S)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
