"""Options that several subcommands share, and how their values are parsed.

Used in this folder only. Imports nothing heavy at the top: `fednc --help` must stay quick.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from fednc.common.errors import ConfigError

Json = Annotated[
    str,
    typer.Option("--json", metavar="PATH|-", help="Write the result as one JSON object to PATH; `-` is stdout."),
]
AppDir = Annotated[
    Path | None,
    typer.Option("--app", metavar="DIR", help="Run the Flower app in this folder instead; see docs/flower.md."),
]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda:N.")]
Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the server.")]
Certs = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder that `fednc certs` made for this client or operator.")
]
Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate of the server's authority.")]
Cert = Annotated[Path | None, typer.Option(metavar="FILE", help="Your certificate; with --key.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of --cert.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="File with your token.")]
NoProxy = Annotated[
    bool, typer.Option("--no-proxy", help="Do not use the proxy that http_proxy or similar variables name.")
]
Partition = Annotated[
    str, typer.Option(metavar="I/N", help="Part I (from 0) of the N parts of the run's simulated split.")
]

ClassNames = Annotated[
    str,
    typer.Option(metavar="A,B,C", help="Names of the integer labels 0, 1, 2, ..., if the data has none."),
]
Columns = Annotated[
    str,
    typer.Option(
        metavar="ROLE=NAME,...",
        help="Columns of an hf: data set (image=NAME,label=NAME), or of a table: RUN=HERE.",
    ),
]


def parse_partition(text: str) -> tuple[int, int] | None:
    """(I, N) of `I/N` with 0 <= I < N; None if the text is empty.

    Raises:
        ConfigError: anything else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--partition {text}: expected I/N with I from 0 to N-1, e.g. 0/4 for the first of four")
    return int(match[1]), int(match[2])
