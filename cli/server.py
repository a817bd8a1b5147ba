"""`fednc server RUN.toml`: serve one run to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednc.cli.options import Json
from fednc.cli.output import write_json

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="Run file; `fednc init` writes one.")]
Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Listen here instead of the run file's server.listen.")
]
TestData = Annotated[
    str, typer.Option(metavar="SPEC", help="Test data of the server instead of the run file's evaluate.test.")
]
Folder = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Folder of the run; one that holds checkpoints of this run file is continued. Default: a new one.",
    ),
]


Certs = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of `fednc certs server` instead of the run file's server.certs.")
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Plaintext and unproven names, also beyond loopback: for closed networks."),
]


def command(
    run_file: RunFile, folder: Folder = "", listen: Listen = "", certs: Certs = "", insecure: Insecure = False,
    test_data: TestData = "", json: Json = "",
) -> None:  # fmt: skip
    """Serve one run: wait for clients, run its rounds, write `runs/<id>/`.

    The run file decides everything. A server that was stopped or killed goes on where it was when it is
    started again with the same run file and --folder. Clients: `fednc client --server HOST:PORT --data SPEC`.
    Ctrl-C ends the run and tells the clients.
    """
    from fednc.cli.live import following
    from fednc.common.config import read_run_file
    from fednc.common.interrupt import run_until_interrupted
    from fednc.server.events import EventLog
    from fednc.server.process import run_server
    from fednc.server.results import run_folder

    run = read_run_file(run_file)
    wanted = {"listen": listen, "certs": certs, "insecure": insecure}
    server = run.server.model_copy(update={key: value for key, value in wanted.items() if value})
    run = run.model_copy(update={"server": server})
    if test_data:
        run = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": test_data})})
    place = run_folder(run, folder)
    events = EventLog(place / "events.jsonl")
    with following(run, events) as live:
        finished = run_until_interrupted(run_server(run, place, events, on_listening=live.watch))
    if json:
        write_json(json, {**finished.summary, "folder": str(finished.folder)})
