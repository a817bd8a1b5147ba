"""The comment at the top of a comparison file: what the comparison is about, and its commands.

Called by the modules that write docs/results.md, where each claim has its command beside it. Reads no result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile
from pathlib import Path

_COMMAND, _SETTINGS = "fednc ", "--settings"


def section(config: Path) -> Iterator[str]:
    """The comment as Markdown, its commands as code."""
    before = ""
    for line in _comment(config):
        is_code = line.startswith(_COMMAND)
        if is_code != before.startswith(_COMMAND):
            yield ""
        yield f"    {line}" if is_code else line
        before = line


def commands(config: Path, settings: Collection[str] = ()) -> list[str]:
    """The commands in the comment that run one of `settings` (empty: any); the usual command if there is none."""
    found = [line for line in _comment(config) if line.startswith(_COMMAND)]
    return [line for line in found if _runs(line, settings)] or [f"fednc compare bench/configs/{config.name}"]


def code(configs: Path, names: Iterable[str], settings: Collection[str] = ()) -> list[str]:
    """The commands of these comparisons as a block of code."""
    return ["", *(f"    {line}" for name in names for line in commands(configs / f"{name}.toml", settings)), ""]


def _comment(config: Path) -> list[str]:
    lines = config.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]


def _runs(command: str, settings: Collection[str]) -> bool:
    words = command.split()
    if _SETTINGS not in words or not settings:
        return True
    return bool({*words[words.index(_SETTINGS) + 1].split(",")} & {*settings})
