"""Output of all subcommands: text for people on stderr, one JSON object for programs on stdout or in a file.

Used in this folder only. Knows nothing about the content.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fednc.common.errors import ConfigError
from fednc.common.peer_text import one_line

_SLOW_S = 1.0  # what takes longer than this says so

console = Console(stderr=True, highlight=False, emoji=False)


def say(line: str, *, style: str = "") -> None:
    """Print one line for people, never wrapped or read as markup: parts of it may come from others."""
    console.print(one_line(line), style=style, markup=False, soft_wrap=True)


def say_error(error: Exception) -> None:
    """Print an error in red on a terminal; further lines are indented."""
    first, *more = f"error: {error}".split("\n")
    say(first, style="bold red")
    for line in more:
        say(line if line.startswith("  ") else f"  {line}", style="bold red")


def as_text(value: object) -> Text:
    """One line for a live display: never read as markup, as it may come from others."""
    return Text(one_line(value))


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done while the block runs: on a terminal at once, elsewhere a line after a second.

    The block may change the text.
    """
    if not console.is_terminal:
        said = threading.Timer(_SLOW_S, say, [f"{what} ..."])
        said.daemon = True
        said.start()
        try:
            yield _no_change
        finally:
            said.cancel()
        return
    with console.status(as_text(what)) as status:
        yield lambda text: status.update(as_text(text))


@contextmanager
def progress(what: str, *, quiet_s: float = 0.0) -> Iterator[Callable[[float], None]]:
    """Show which share of the work is done, with the time left: a bar on a terminal, elsewhere a line per tenth.

    Args:
        what: what is counted, e.g. `rounds`.
        quiet_s: no line before that many seconds.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not console.is_terminal:
        tenth, started = 0, time.monotonic()

        def tell(share: float) -> None:
            nonlocal tenth
            spent_s = time.monotonic() - started
            if share < tenth / 10 or spent_s < quiet_s:
                return
            left = f", {time_left(spent_s / share * (1 - share))}" if 0 < share < 1 else ""
            say(f"{100 * share:.0f} % of all {what} done{left}")
            tenth = int(10 * share) + 1

        yield tell
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        "{task.percentage:.0f} %",
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _no_change(text: str) -> None:
    del text


def time_left(seconds: float) -> str:
    """`about 3 min left`."""
    if seconds < 1:
        return "less than a second left"
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length_s:
            return f"about {seconds / length_s:.0f} {unit} left"
    return f"about {seconds:.0f} s left"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on a terminal; elsewhere the same rows in aligned columns."""
    cells = [[_cell(value) for value in row] for row in rows]
    if console.is_terminal:
        console.print(as_table(title, columns, rows))
        return
    say(title)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write_json(target: str, value: dict[str, Any]) -> None:
    """Write `value` as one JSON object: to stdout if `target` is `-`, else to the file `target`.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = _escaped(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)) + "\n"
    if target == "-":
        _write_stdout(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(
            f"--json {target}: cannot be written ({e.strerror}); give a file in an existing folder"
        ) from e


def _write_stdout(text: str) -> None:
    """Raises ConfigError: the reader of stdout is gone, or its disk is full."""
    sys.stdout.write(text)
    sys.stdout.flush()
    failed = getattr(sys.stdout, "failed", None)  # our console never fails itself; it notes the error
    if failed:
        why = getattr(failed, "strerror", None) or str(failed)
        raise ConfigError(f"--json -: stdout cannot be written ({why}); give a file instead")


def as_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table for a terminal."""
    table = Table(title=as_text(title), title_justify="left")
    for place, name in enumerate(columns):
        numeric = all(isinstance(row[place], int | float) for row in rows)
        table.add_column(as_text(name), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(as_text(_cell(value)) for value in row))
    return table


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(value)


def _escaped(text: str) -> str:
    """JSON without characters that control a terminal, of which JSON itself escapes only the ASCII ones."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)
