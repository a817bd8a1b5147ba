"""A page of headings, sentences, tables and pictures, as Markdown and as one HTML file that needs nothing else.

`report.py` fills it. All text is plain text, some of it from clients: both forms escape it. Knows no runs.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fednc.common.peer_text import markdown_text, one_line

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{border:1px solid #bbb;padding:.25rem .6rem;text-align:left}img{max-width:100%;background:#fff}"
    "figure{margin:1rem 0}h2{border-bottom:1px solid #bbb;margin-top:2rem}figcaption{color:#666}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}td,th,h2{border-color:#555}"
    "figcaption{color:#aaa}}"
)


@dataclass(frozen=True)
class TextTable:
    """A table of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    lines: Sequence[str]


Block = str | TextTable | Picture | Bullets  # a string is a paragraph


@dataclass
class Page:
    """A title, and sections of blocks in order."""

    title: str
    sections: list[tuple[str, list[Block]]] = field(default_factory=list)

    def section(self, heading: str, blocks: Sequence[Block]) -> None:
        """Add a section; one without blocks is left out."""
        if blocks:
            self.sections.append((heading, list(blocks)))

    def to_markdown(self, folder: Path) -> str:
        """As Markdown; pictures are linked relative to `folder`."""
        parts = [f"# {markdown_text(self.title)}"]
        for heading, blocks in self.sections:
            parts += [f"## {markdown_text(heading)}", *(_markdown(block, folder) for block in blocks)]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """As HTML with the pictures in it. It loads nothing and runs no script, and says so to the browser."""
        body = [f"<h1>{_text(self.title)}</h1>"]
        for heading, blocks in self.sections:
            body += [f"<h2>{_text(heading)}</h2>", *map(_html, blocks)]
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(body)
            + "\n</body></html>\n"
        )


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, str):
        return markdown_text(block)
    if isinstance(block, Bullets):
        return "\n".join(f"* {markdown_text(line)}" for line in block.lines)
    if isinstance(block, Picture):
        place = Path(os.path.relpath(block.path, folder)).as_posix()
        return f"![{markdown_text(block.caption)}](<{place}>)"
    rows = [block.head, ["---"] * len(block.head), *block.rows]
    lines = [f"| {' | '.join(cell if row is rows[1] else markdown_text(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in block.lines)}</ul>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = _text(block.caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f"<th>{_text(cell)}</th>" for cell in block.head)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _text(text: str) -> str:
    return html.escape(one_line(text), quote=True)
