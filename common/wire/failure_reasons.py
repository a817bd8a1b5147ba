"""Why a client does not do what it was asked: fixed codes with a fixed sentence each, the only ones that travel.

An error's own text names paths, classes and values of its machine. It stays in the client's log; the server, and
through it everybody else, hears the code. Used by the client for declarations and failed work.
"""

from __future__ import annotations

import errno

from fednc.common.errors import ConfigError, DataError, MissingExtraError, ProtocolError, RefusedError
from fednc.common.peer_text import SHORT_TEXT

_SEE = "; its own log says more"
SENTENCES = {
    "app-failed": "the client's app failed" + _SEE,
    "below-reserve": "its owner keeps more memory or disk free than is left" + _SEE,
    "configuration": "its options, or what is installed there, do not fit the run" + _SEE,
    "data": "its data is missing, unreadable or does not fit the run" + _SEE,
    "failed": "an unexpected error" + _SEE,
    "no-space": "its disk is full" + _SEE,
    "out-of-memory": "it ran out of memory" + _SEE,
    "package-missing": "a package that the run needs is not installed there" + _SEE,
    "protocol": "what it received breaks the agreement, or what it would send does" + _SEE,
    "refused": "its owner refuses it" + _SEE,
    "system": "its operating system reported an error" + _SEE,
    "too-large": "its owner does not accept a download of this size" + _SEE,
}


class CodedError(Exception):
    """An error that says itself which code it travels under; `sentence` where it has one of its own."""

    code = "failed"
    sentence = ""


_CODES: tuple[tuple[type[BaseException], str], ...] = (  # the first that fits
    (DataError, "data"),
    (MissingExtraError, "package-missing"),
    (ConfigError, "configuration"),
    (ProtocolError, "protocol"),
    (RefusedError, "refused"),
    (MemoryError, "out-of-memory"),
    (OSError, "system"),
)


def code_of(error: BaseException) -> str:
    """The code that an error travels under."""
    if isinstance(error, CodedError):
        return error.code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no-space"
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, on a GPU
        return "out-of-memory"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "failed")


def failure_of(error: BaseException, foreign: str = "") -> tuple[str, str]:
    """Kind and reason of a failure as they travel.

    Args:
        foreign: the name of the exception class that somebody else's app raised. It travels, as it is part of the
            app's code; what it says does not, as that may hold the client's data.
    """
    if foreign:
        name = foreign if foreign.isidentifier() and foreign.isascii() else "AppError"
        return name[:SHORT_TEXT], SENTENCES["app-failed"]
    code = code_of(error)
    return code, (error.sentence if isinstance(error, CodedError) else "") or SENTENCES[code]


def refusal_of(error: BaseException) -> str:
    """Why a client cannot take part, as it travels."""
    return ": ".join(failure_of(error))
