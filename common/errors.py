"""Every error that fednc raises on purpose, as one tree, with the exit code of the command that it ends.

    FedncError            1  anything below
    ├── ConfigError       2  a run file, an option or a path that cannot be used
    ├── DataError         3  data that is missing, unreadable or does not fit the run
    ├── AddressError      4  a port or folder that is taken, an address that cannot be resolved or does not answer
    ├── QuorumError       5  too few clients before `wait_s`, or too few replies in a round
    ├── RefusedError      6  the server refuses this client (name taken, version, identity)
    ├── ProtocolError     7  data from the peer that breaks the protocol
    ├── MissingExtraError 8  an optional dependency is not installed
    ├── RunFailedError    9  the run ended without a result
    └── DivergedError    10  training diverged; the last good model is kept

A message says what was given, what was expected and what to do next. Ctrl-C ends with 130.
"""

from __future__ import annotations

import errno
import os

EXIT_INTERRUPTED = 130

# These may pass, so a service manager is right to restart the command.
_PASSING = (errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ESTALE)


class FedncError(Exception):
    """Base of all errors that fednc raises on purpose."""

    exit_code = 1


class ConfigError(FedncError):
    """A run file, an option or a path that cannot be used."""

    exit_code = 2


class DataError(FedncError):
    """Data that is missing, unreadable or does not fit the run."""

    exit_code = 3


class AddressError(FedncError):
    """A port or folder that is taken, an address that cannot be resolved or does not answer."""

    exit_code = 4


class QuorumError(FedncError):
    """Too few clients joined before `wait_s`, or too few answered in a round."""

    exit_code = 5


class RefusedError(FedncError):
    """The server refuses this client for good; trying again would not help."""

    exit_code = 6


class ProtocolError(FedncError):
    """Data from the peer that breaks the protocol."""

    exit_code = 7


class StaleError(ProtocolError):
    """A reply that contradicts what its node announced, for example because it came back with different data."""


class UnusableValuesError(ProtocolError):
    """Values that are not finite or out of bounds: the fault of this node, or of the model that all nodes got."""


class MissingExtraError(FedncError):
    """An optional dependency is needed and not installed."""

    exit_code = 8

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'fednc[{extra}]'")


class RunFailedError(FedncError):
    """The run ended without a result."""

    exit_code = 9


class DivergedError(FedncError):
    """Most clients of a round sent values that are not finite: the run has diverged, and they are not to blame."""

    exit_code = 10


def of_system(error: OSError) -> FedncError:
    """An error of the operating system as one of our own: which path, why, and what to do.

    A full disk or too many open files may pass, so they end with exit code 1. A path that cannot be used will not.
    """
    what = f"{error.filename}: " if error.filename not in (None, "") else ""
    why = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FedncError(f"{what}{why}: free some space, or use a folder on another disk")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return FedncError(f"{what}{why}: allow more open files (ulimit -n, LimitNOFILE=)")
    if error.errno in _PASSING or error.filename is None:
        return FedncError(f"{what}{why}; if it happens again, check the system log")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(
            f"{what}{why} for user {os.geteuid()}: give another path, or give that user access to it"
        )
    return ConfigError(f"{what}{why}: check the path")
