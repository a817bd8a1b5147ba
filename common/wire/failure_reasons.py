"""Why a client cannot do its work: fixed codes, each with a fixed sentence. Nothing else about a failure is sent.

The text of an error contains paths, classes and values of its machine, so it stays in the client's log. The
server, and through it everybody else, gets only the code. Used by the client when joining or work fails.
"""

from __future__ import annotations

import errno

from fednc.common.errors import ConfigError, DataError, MissingExtraError, ProtocolError, RefusedError
from fednc.common.peer_text import SHORT_TEXT

_SEE = "; its own log says more"
SENTENCES = {
    "app-failed": "the client's app failed" + _SEE,
    "below-reserve": "its owner reserves more memory or disk space than is free" + _SEE,
    "configuration": "its options or installed packages do not fit the run" + _SEE,
    "data": "its data is missing, unreadable or does not fit the run" + _SEE,
    "failed": "an unexpected error occurred" + _SEE,
    "no-space": "its disk is full" + _SEE,
    "out-of-memory": "it ran out of memory" + _SEE,
    "package-missing": "a package that the run needs is not installed there" + _SEE,
    "protocol": "data that it received or was about to send breaks the protocol" + _SEE,
    "refused": "its owner refuses it" + _SEE,
    "system": "its operating system reported an error" + _SEE,
    "too-large": "its owner does not accept a download of this size" + _SEE,
}


class CodedError(Exception):
    """An error that names its own code, and optionally its own sentence."""

    code = "failed"
    sentence = ""


_CODES: tuple[tuple[type[BaseException], str], ...] = (  # the first match counts
    (DataError, "data"),
    (MissingExtraError, "package-missing"),
    (ConfigError, "configuration"),
    (ProtocolError, "protocol"),
    (RefusedError, "refused"),
    (MemoryError, "out-of-memory"),
    (OSError, "system"),
)


def code_of(error: BaseException) -> str:
    """The code that is sent for an error."""
    if isinstance(error, CodedError):
        return error.code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no-space"
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, on a GPU
        return "out-of-memory"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "failed")


def failure_of(error: BaseException, foreign: str = "") -> tuple[str, str]:
    """Kind and reason of a failure, as they are sent.

    Args:
        foreign: the name of the exception class that another person's app raised. It is sent because it is part of
            the app's code. The message is not, because it may contain the client's data.
    """
    if foreign:
        name = foreign if foreign.isidentifier() and foreign.isascii() else "AppError"
        return name[:SHORT_TEXT], SENTENCES["app-failed"]
    code = code_of(error)
    return code, (error.sentence if isinstance(error, CodedError) else "") or SENTENCES[code]


def refusal_of(error: BaseException) -> str:
    """Why a client cannot take part, as it is sent."""
    return ": ".join(failure_of(error))
