"""Processes that end with the one that started them, even if that one is killed.

Used by the carriers, so that a killed pipeline leaves nobody behind who would disturb its next start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Asks the kernel for SIGKILL when the parent dies, then becomes the program. Without preexec_fn, which would run
# Python between fork and exec in a process with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so. On systems other than Linux it is `command` itself."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command]
