"""`fednc certs`: make a certificate authority, and issue and revoke certificates and tokens."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, show_table, write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.common.security.authority import Authority, Issued
    from fednc.common.security.credentials import Holder

command = typer.Typer(no_args_is_help=True, help=__doc__)

Dir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the authority; keep its ca.key private.")]
Name = Annotated[str, typer.Argument(help="Name of the node, as in the server's lists and records.")]
Hosts = Annotated[
    list[str],
    typer.Option("--host", metavar="NAME|IP", help="Name or address that clients use for the server; repeatable."),
]
Days = Annotated[float, typer.Option(min=0.0, help="Days until it expires.")]
Renew = Annotated[bool, typer.Option("--renew", help="Issue another even if a valid one exists.")]
Operator = Annotated[bool, typer.Option("--operator", help="For an operator of the server instead of a node.")]
Viewer = Annotated[bool, typer.Option("--viewer", help="For somebody who may look at `fednc console`, no more.")]
CaName = Annotated[str, typer.Option("--name", help="Name of the authority, for people to read.")]
Print = Annotated[bool, typer.Option("--print", help="Print the token to stdout instead of writing its file.")]


@command.command("init")
def init(folder: Dir, name: CaName = "fednc") -> None:
    """Make a certificate authority in DIR."""
    from fednc.common.security.authority import Authority

    Authority.create(folder, name)
    say(f"{folder}/ca.key signs certificates: keep it private, off the server, and back it up in a safe place")


@command.command("server")
def server(folder: Dir, host: Hosts, days: Days = 365, renew: Renew = False) -> None:
    """Make the server's certificate; use it with `server.certs = "DIR/server"`."""
    made = _open(folder).issue_server(host, timedelta(days=days), renew=renew)
    say(f"wrote {made}: set server.certs = {str(made)!r} in the run file")


@command.command("node")
def node(
    folder: Dir,
    name: Name,
    days: Days = 365,
    renew: Renew = False,
    operator: Operator = False,
    viewer: Viewer = False,
) -> None:
    """Make a certificate for NAME; copy its folder to the node's machine."""
    holder = _holder(name, operator, viewer)
    made = _open(folder).issue_certificate(holder, timedelta(days=days), renew=renew)
    _say_where(made, holder)


@command.command("token")
def token(
    folder: Dir,
    name: Name,
    days: Days = 90,
    renew: Renew = False,
    operator: Operator = False,
    viewer: Viewer = False,
    print_it: Print = False,
) -> None:
    """Make a token for NAME, for servers with auth = "token"; the server stores only its hash."""
    authority, holder = _open(folder), _holder(name, operator, viewer)
    made = authority.issue_token(holder, timedelta(days=days), renew=renew)
    if print_it:
        typer.echo(made)
        return
    place = authority.write_token(holder, made)
    _say_where(place, holder)


@command.command("revoke")
def revoke(folder: Dir, name: Name) -> None:
    """Revoke all certificates and tokens of NAME; a server that reads DIR/server drops it within a second."""
    authority = _open(folder)
    taken = authority.revoke(name)
    say(f"revoked {len(taken)} of {name}; a server elsewhere needs a new copy of {authority.server_folder}")


@command.command("list")
def list_(folder: Dir, json: Json = "") -> None:
    """List all that was issued and whether it is valid."""
    authority = _open(folder)
    revoked = authority.revoked()
    lines = [(line, _state(line, line.serial in revoked)) for line in authority.issued()]
    rows = [
        (line.name, line.role, line.kind, _day(line.expires), state, line.serial[:16]) for line, state in lines
    ]
    show_table(str(folder), ("name", "role", "kind", "expires", "state", "serial"), rows)
    if json:
        write_json(json, {"issued": [{**line.model_dump(), "state": state} for line, state in lines]})


def _open(folder: Path) -> Authority:
    from fednc.common.security.authority import Authority

    return Authority(folder)


def _holder(name: str, operator: bool, viewer: bool) -> Holder:
    from fednc.common.security.credentials import Holder, Role

    if operator and viewer:
        raise ConfigError("--operator and --viewer contradict each other: an operator may look at everything too")
    return Holder(Role.OPERATOR if operator else Role.VIEWER if viewer else Role.NODE, name)


def _say_where(folder: Path, holder: Holder) -> None:
    use = {"node": "fednc client", "operator": "fednc status"}.get(holder.role)
    then = f"then run {use} --certs {folder.name} ..." if use else "for the login of fednc console"
    say(f"wrote {folder}: copy it to the machine of {holder.name}, {then}")


def _state(line: Issued, revoked: bool) -> str:
    if revoked:
        return "revoked"
    return "in force" if line.expires > time.time() else "expired"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
