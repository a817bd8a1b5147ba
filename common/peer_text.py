"""Text that a peer sends, made safe to log and to show: how long it may be, and which characters it may contain.

Used by both ends of the link, the log and the command line. Knows nothing about the messages that carry the text.
"""

from __future__ import annotations

import re

SHORT_TEXT, LONG_TEXT = 200, 4000  # most characters of a name, and of a reason
_LAYOUT = {ord("\n"): " ", ord("\t"): " "}
# What begins or ends something in Markdown: punctuation (but not _ inside a word), the mark of a list, a bare
# address.
_MARKUP = re.compile(r"([\\`*{}\[\]<>#|~$&@]|(?<![^\W_])_|_(?![^\W_])|^[-+=]|(?<=:)//|(?<=www)\.)")
_LIST_NUMBER = re.compile(r"^(\d+)([.)])(?=\s|$)")


def is_plain(text: str) -> bool:
    """Whether a terminal shows the text as it is: no control characters except newline and tab."""
    return text.isprintable() or text.translate(_LAYOUT).isprintable()


def plain(text: str, most: int) -> str:
    """The text ready to send: cut to `most` characters, with control characters replaced."""
    text = text[:most]
    return text if is_plain(text) else "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def one_line(text: object, most: int | None = None) -> str:
    """The text as one line that a terminal shows as it is. It cannot start a new line or control the terminal.

    Control characters, line separators, bidirectional controls and lone surrogates become U+FFFD. Newlines and
    tabs become spaces.
    """
    line = str(text).translate(_LAYOUT)
    line = line if most is None or len(line) <= most else line[: max(0, most - 1)] + "\u2026"
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)


def markdown_text(text: object) -> str:
    """The text as one line of Markdown, also in a cell of a table: nothing in it is markup, a link or HTML.

    A backslash before punctuation means the character itself. Every page that is written in Markdown uses this.
    """
    return _LIST_NUMBER.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", one_line(text).strip()))


def markdown_code(text: object) -> str:
    """The text as code in a line of Markdown that is no table; nothing in it ends the code."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    edge = " " if not line.strip() or "`" in (line[0], line[-1]) or line[0] == line[-1] == " " else ""
    return f"{fence}{edge}{line}{edge}{fence}"
