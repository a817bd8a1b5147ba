"""`fednc report`: what a run did, for whom, how good the model is, where it is bad, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednc.cli.output import say


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="runs/<id>", help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write. Default: the folder of the run.")
    ] = None,
) -> None:
    """Write report.md and report.html. The HTML file has the pictures in it and needs no other file.

    Clients that ask not to be listed are not named in it.
    """
    from fednc.common.files import private_folder, write_atomically
    from fednc.ops.review.report import report

    page = report(run_folder)
    place = out or run_folder
    private_folder(place)
    write_atomically(place / "report.md", page.to_markdown(place).encode())
    write_atomically(place / "report.html", page.to_html().encode())
    say(f"wrote {place / 'report.md'} and {place / 'report.html'}")
