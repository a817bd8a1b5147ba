"""`fednc console`: the web page of the person who runs a federation."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from fednc.cli.options import Ca, Cert, Certs, Json, Key, NoProxy, TokenFile
from fednc.common.errors import ConfigError

Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="Server of a running federation.")]
Runs = Annotated[
    list[Path] | None, typer.Option("--runs", metavar="DIR", help="Folder with runs; repeatable. Default: `runs`.")
]
Store = Annotated[str, typer.Option(metavar="URI", help="Model store to show: a folder, or an MLflow server.")]
Approvals = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the gates' requests and verdicts.")]
Pipelines = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the pipelines' states.")]
Searches = Annotated[
    list[str] | None, typer.Option("--search", metavar="URL", help="Storage of `fednc search`; repeatable.")
]
Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where browsers connect; port 0 takes a free one.")]
Access = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of `fednc certs server`: TLS, and whose tokens and certificates count."
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME", help="A further name by which browsers may call the console; repeatable."
    ),
]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="Nobody can change anything here, operators neither.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Plaintext beyond this machine too: for closed networks.")
]


def command(
    server: Server = "",
    runs: Runs = None,
    store: Store = "",
    approvals: Approvals = None,
    pipelines: Pipelines = None,
    search: Searches = None,
    listen: Listen = "127.0.0.1:8460",
    access: Access = None,
    host: Hosts = None,
    read_only: ReadOnly = False,
    insecure: Insecure = False,
    certs: Certs = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    no_proxy: NoProxy = False,
    json: Json = "",
) -> None:
    """Open a console in the browser: rounds, clients, curves and geometry of a run; pause, stop, drop; runs.

    On this machine it prints a link to log in with. Beyond it, give --access: operators then log in with their
    token or certificate and may act, viewers (`fednc certs token DIR NAME --viewer`) may look. --certs is the
    console's own operator credential for --server. `--json` writes address and key as soon as it listens.
    Verdicts on gates are signed with the key in --access. docs/console.md shows how to use it.
    """
    from fednc.cli.output import say
    from fednc.cli.status import operator_link
    from fednc.common.address import parse_address, parse_host
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.common.process.log_format import log_to_stderr
    from fednc.ops.console.desk import Sights
    from fednc.ops.console.service import ConsoleSettings, serve_console

    log_to_stderr()
    link = operator_link(server, certs, ca, cert, key, token_file, direct=no_proxy) if server else None
    folders = tuple(runs or [Path("runs")])
    for folder in runs or []:
        if not folder.is_dir():
            raise ConfigError(f"--runs {folder}: no such folder; give the folder that holds runs (server.runs)")
    settings = ConsoleSettings(
        sights=Sights(link, folders, store, approvals, pipelines, tuple(search or ()), access),
        listen=parse_address(listen, "--listen", may_choose_port=True),
        access=access,
        hosts=[parse_host(each, "--host") for each in host or []],
        read_only=read_only,
        insecure=insecure,
    )

    def say_where(address: str, secret: str) -> None:
        if json:
            _write_where(json, {"address": address, "key": secret})
        if secret:
            say(f"listening: {address}/login#key={secret}")
            say("whoever has this link may log in; it is valid until the console ends")
        else:
            say(f"listening: {address}")

    try:
        run_until_interrupted(serve_console(settings, say_where))
    except KeyboardInterrupt:
        return  # the usual end of a service


def _write_where(target: str, values: dict[str, str]) -> None:
    """Like every `--json`, but nobody else may read the file: it has the key."""
    from fednc.cli.output import write_json
    from fednc.common.files import write_atomically

    if target == "-":
        write_json(target, values)
    else:
        write_atomically(Path(target), json_format.dumps(values, indent=2).encode())
