"""Keeps one record out of gRPC's log: a call that this server cancelled before its handler had begun.

gRPC logs it as an error with a traceback, but nothing went wrong: the server ended the call because its credential
expired or its node left. Set up by `listener.py`.
"""

from __future__ import annotations

import asyncio
import logging

GRPC_LOG = "grpc._cython.cygrpc"
_UNHANDLED = "Exception not handled by _handle_exceptions"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    is_cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
    return not (is_cancelled and str(record.msg).startswith(_UNHANDLED))


def ignore_cancelled_calls() -> None:
    """Filter the record out from now on. Calling it more than once does no harm."""
    logging.getLogger(GRPC_LOG).addFilter(_is_worth_logging)
