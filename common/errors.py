"""Every error that fednc raises on purpose, in one tree, with the exit code of the command it ends.

    FedncError            1  anything below
    ├── ConfigError       2  a run file, an option or a path that cannot be used
    ├── DataError         3  data that is missing, unreadable or does not fit the run
    ├── AddressError      4  a port or folder that is taken, an address that cannot be resolved or does not answer
    ├── QuorumError       5  too few clients before `wait_s`, or too few replies in a round
    ├── RefusedError      6  the server refuses this client (name taken, version, identity)
    ├── ProtocolError     7  bytes from the peer that break the agreement
    ├── MissingExtraError 8  an optional dependency is not installed
    ├── RunFailedError    9  the run ended without a result
    └── DivergedError    10  training diverged; the last good model is kept

A message says the offending value, what was expected and what to do next. Ctrl-C ends with 130.
"""

from __future__ import annotations

import errno
import os

EXIT_INTERRUPTED = 130

# What time may mend, so that a service manager is right to start the command again.
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
    """Too few clients came before `wait_s`, or too few answered in a round."""

    exit_code = 5


class RefusedError(FedncError):
    """The server refuses this client for good; trying again would not help."""

    exit_code = 6


class ProtocolError(FedncError):
    """Bytes from the peer that break the agreement."""

    exit_code = 7


class StaleError(ProtocolError):
    """A reply that does not fit what its node said before, as of one that came back with other data."""


class UnusableValuesError(ProtocolError):
    """Values that are not finite or out of bounds: one node's fault, or that of the model that all were sent."""


class MissingExtraError(FedncError):
    """An optional dependency is needed and not installed."""

    exit_code = 8

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'fednc[{extra}]'")


class RunFailedError(FedncError):
    """The run ended without a result."""

    exit_code = 9


class DivergedError(FedncError):
    """Most clients of a round sent values that are not finite: it is the run's fault, not theirs."""

    exit_code = 10


def of_system(error: OSError) -> FedncError:
    """What the operating system refused, as one of our own errors: which path, why, and what to do.

    A full disk or too many open files may pass, which exit code 1 says; a path that cannot be used will not.
    """
    what = f"{error.filename}: " if error.filename not in (None, "") else ""
    why = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FedncError(f"{what}{why}: free some space, or use a folder on another disk")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return FedncError(f"{what}{why}: allow more open files (ulimit -n, LimitNOFILE=)")
    if error.errno in _PASSING or error.filename is None:
        return FedncError(f"{what}{why}; if it happens again, look at the machine's log")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"{what}{why} for user {os.geteuid()}: give another path, or that user the right to it")
    return ConfigError(f"{what}{why}: check the path")
