"""Log lines that only the logger can start: what a peer says is text inside one line.

Set up by the `fednc` command for its own process. Knows nothing of who logs what.
"""

from __future__ import annotations

import logging

from fednc.common.peer_text import one_line

_CONTINUED = "    | "  # before every further line of a record, so that none can pass for a record of its own


class OneLineFormatter(logging.Formatter):
    """Formats a message as one line; a traceback follows it line by line, each of them marked."""

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
    """Show this process's log from INFO on, with the time of day."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _marked(text: str) -> str:
    return "\n".join(_CONTINUED + one_line(line) for line in text.split("\n"))
