"""`fednc session`: starts the next session of a run whose classes come in sessions."""

from __future__ import annotations

from typing import Annotated

import typer

from fednc.cli.options import Ca, Cert, Certs, Json, Key, NoProxy, Server, TokenFile
from fednc.cli.output import say, write_json

Classes = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="NAME", help="Name of a new class, if the run file names none; repeatable."),
]

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Start sessions of a run whose classes come later."""


@app.command("next")
def start_next(
    server: Server,
    classes: Classes = None,
    certs: Certs = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    no_proxy: NoProxy = False,
    json: Json = "",
) -> None:
    """Start the session that waits for an operator ([[sessions]] with start = "operator").

    The session waits for clients with examples of its classes. Needs an operator's credential, as `fednc status`
    does.
    """
    from fednc.cli.status import as_json, operator_link
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.server.operations.commands import StartSession

    link = operator_link(server, certs, ca, cert, key, token_file, direct=no_proxy)
    status = run_until_interrupted(link.ask(StartSession(tuple(classes or ()))))
    say(f"session {status.waiting_session or status.session} of {status.sessions} starts")
    if json:
        write_json(json, as_json(status))
