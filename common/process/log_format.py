"""A log format in which text from a peer cannot start a new line or pass for another record.

Set up by the `fednc` command for its own process. Knows nothing about what is logged.
"""

from __future__ import annotations

import logging

from fednc.common.peer_text import one_line

_CONTINUED = "    | "  # before every further line of a record, so that it cannot pass for a new record


class OneLineFormatter(logging.Formatter):
    """Formats a message as one line. A traceback follows with a mark before each line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        """See logging.Formatter."""
        return _marked(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """See logging.Formatter."""
        return _marked(super().formatStack(stack_info))


def log_to_stderr() -> None:
    """Log to stderr from level INFO, with the time of day."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _marked(text: str) -> str:
    return "\n".join(_CONTINUED + one_line(line) for line in text.split("\n"))
