"""`fednc models`: registers finished runs, lists and checks versions, moves aliases, shows where models come from.

Prints what `fednc.ops.registry` finds; decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, show_table, write_json
from fednc.common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fednc.ops.registry.registry import ModelRegistry

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Versions of models, and where each comes from."
)

StorePlace = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URI",
        help="A folder, or the URI of an MLflow server. Default: FEDNC_STORE, else the folder `models`.",
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")]
AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="For example champion or challenger.")]
AnyVersion = Annotated[
    str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]", help="One version; NAME alone is NAME@champion.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="runs/<id>", help="Folder of a finished run.")]
_DIGITS = 12  # of a digest, for people


@app.command()
def register(
    run: RunFolder,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model. Default: the run file's name.")
    ] = "",
    alias: Annotated[str, typer.Option(metavar="ALIAS", help="Let this alias point to the new version.")] = "",
    store: StorePlace = "",
    json: Json = "",
) -> None:
    """Add a finished run as a new version of a model. The same run again changes nothing but the alias."""
    from fednc.ops.registry.registration import register as add

    made = add(_registry(store), run, name, alias)
    news = "registered" if made.is_new else "was registered before as"
    say(f"{run} {news} {made.name}/{made.version}, digest {made.digest[:_DIGITS]}")
    say(f"data version {made.data_version}")
    if alias:
        say(f"{made.name}@{alias} -> {made.version}")
    if made.outdated:
        say(
            f"label map, columns or classes have changed: {', '.join(made.outdated)} are stale now", style="yellow"
        )
    if json:
        write_json(json, {**vars(made), "outdated": list(made.outdated)})


@app.command("list")
def list_versions(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this model.")] = "",
    store: StorePlace = "",
    json: Json = "",
) -> None:
    """List the versions of all models, or of one."""
    _list(_registry(store), name, json, only_stale=False)


@app.command()
def stale(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this model.")] = "",
    run: Annotated[
        Path | None, typer.Option(metavar="runs/<id>", help="Would this run make versions of NAME stale?")
    ] = None,
    store: StorePlace = "",
    json: Json = "",
) -> None:
    """List versions whose data has changed since: another label map, other columns or classes."""
    registry = _registry(store)
    if run is None:
        _list(registry, name, json, only_stale=True)
        return
    from fednc.ops.registry.registration import changes_by

    if not name:
        raise ConfigError("--run: name the model too, `fednc models stale NAME --run runs/<id>`")
    number, outdates = changes_by(registry, name, run)
    verdict = "models made on other versions would be stale" if outdates else "nothing would be stale by it"
    say(f"{run} has data version {number} of {name}: {verdict}")
    if json:
        write_json(json, {"name": name, "data_version": number, "outdates": outdates})


def _list(registry: ModelRegistry, name: str, json: str, *, only_stale: bool) -> None:
    rows = [row for row in registry.rows(name) if row.stale or not only_stale]
    if name and not registry.rows(name):
        raise ConfigError(f"{name}: not in the store {registry.store}; `fednc models list` shows what is there")
    if rows:
        columns = ["version", "alias", "run", "method", "data", "stale", "digest", "registered"]
        shown = [
            [
                str(row),
                ", ".join(row.aliases),
                row.run,
                row.method,
                f"v{row.data_version}",
                "stale" if row.stale else "",
                row.digest[:_DIGITS],
                _time(row.created_at),
            ]
            for row in rows
        ]
        show_table(f"models in {registry.store}", columns, shown)
    else:
        say(f"no {'stale version' if only_stale else 'version'} in {registry.store}")
    if json:
        write_json(json, {"versions": [{**vars(row), "aliases": list(row.aliases), "tags": {}} for row in rows]})


@app.command()
def show(version: AnyVersion, store: StorePlace = "", json: Json = "") -> None:
    """Check one version against its digest, and show what it is."""
    from fednc.ops.registry.lineage import lineage_of

    found = lineage_of(_registry(store), version)
    rows = [
        ["digest", found["digest"]],
        ["aliases", ", ".join(found["aliases"])],
        ["run", found["run"]],
        ["method", f"{found['method']}, read-out {found['readout']}"],
        ["task", found["task"]],
        ["classes", ", ".join(found["classes"])],
        ["data version", f"{found['data_version']}{', STALE: ' + found['stale_why'] if found['stale'] else ''}"],
        ["folder", str(_registry(store).resolve(f"{found['model']}/{found['version']}").folder)],
    ]
    show_table(f"{found['model']}/{found['version']}", ["", "value"], rows)
    if json:
        write_json(json, found)


@app.command()
def alias(
    name: ModelName,
    alias: AliasName,
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Number of the version.")],
    store: StorePlace = "",
) -> None:
    """Let an alias point to a version, once its digest is checked."""
    registry = _registry(store)
    before = registry.aliases(name).get(alias)
    registry.set_alias(name, alias, version)
    say(f"{name}@{alias} -> {version}" + (f" (was {before})" if before else ""))
    if registry.is_stale(f"{name}/{version}"):
        say(f"{name}/{version} is stale: label map, columns or classes have changed since", style="yellow")


@app.command()
def rollback(
    name: ModelName,
    alias: Annotated[str, typer.Argument(metavar="[ALIAS]", help="The alias to move back.")] = "champion",
    store: StorePlace = "",
) -> None:
    """Let an alias point where it pointed before its last move."""
    say(f"{name}@{alias} -> {_registry(store).rollback(name, alias)}")


@app.command()
def verify(
    versions: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[@ALIAS|/VERSION]...]", help="Default: all versions.")
    ] = None,
    store: StorePlace = "",
    json: Json = "",
) -> None:
    """Check files and rows of the store against the digests of the versions. Exit code 3 if one was changed."""
    registry = _registry(store)
    found = {each: registry.verify(each) for each in versions or [str(row) for row in registry.rows()]}
    for reference, problems in found.items():
        say(f"{reference}: {'as registered' if not problems else 'CHANGED'}", style="bold red" if problems else "")
        for problem in problems:
            say(f"  {problem}")
    if json:
        write_json(json, {"versions": found})
    bad = [reference for reference, problems in found.items() if problems]
    if bad:
        raise DataError(f"{', '.join(bad)}: not what was registered; restore the store from a backup")


@app.command()
def lineage(version: AnyVersion, store: StorePlace = "", json: Json = "") -> None:
    """Where a version comes from: run, clients, data, code, events, approvals, moves of its aliases."""
    from fednc.ops.registry.lineage import lineage_of

    found = lineage_of(_registry(store), version)
    show_table(f"{found['model']}/{found['version']}", ["", "value"], _facts(found))
    show_table("clients", ["client", "examples", "columns", "labels", "data fingerprint"], _clients(found))
    code = [
        [one["name"], one["version"], one["code_sha256"][:_DIGITS], ", ".join(one["provides"])]
        for one in found["distributions"]
    ]
    if code:
        show_table("code", ["distribution", "version", "sha256", "provides"], code)
    approvals = [
        [str(one.get(key, "")) for key in ("who", "verdict", "at", "signed", "reason", "problem")]
        for one in found["approvals"]
    ]
    if approvals:
        show_table("approvals", ["who", "verdict", "at", "signed", "reason", "does not count because"], approvals)
    else:
        say("no approvals")
    moves = [
        [alias, move["before"] or "", move["after"], move["who"], _time(move["at"])]
        for alias, all_ in found["moves"].items()
        for move in all_
    ]
    if moves:
        show_table("aliases", ["alias", "from", "to", "who", "when"], moves)
    if json:
        write_json(json, found)


def _facts(found: dict[str, Any]) -> list[list[str]]:
    events = found["events"]
    return [
        ["digest", found["digest"]],
        ["run", f"{found['run']} ({found['ended']})"],
        ["run file", found["run_digest"]],
        ["weights", found["weights_sha256"]],
        ["frame", found["frame_sha256"]],
        ["method", f"{found['method']}, read-out {found['readout']}"],
        ["events", f"{events['sha256']} ({events['bytes']} bytes)"],
        ["operators", ", ".join(f"{one['operator']}: {one['command']}" for one in found["commands"]) or "none"],
        ["data version", f"{found['data_version']}{', STALE' if found['stale'] else ''}"],
    ]


def _clients(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for client in found["clients"]:
        said = client["manifest"] or {}
        labels = said.get("labels", {})
        rows.append(
            [
                client["name"],
                f"up to {said['examples']}" if "examples" in said else "not told",
                ", ".join(map(_column, said.get("columns", [])[:4])),
                ", ".join(f"{label}={name}" for label, name in list(labels.items())[:4]) or "by name",
                said.get("fingerprint", "")[:_DIGITS] or "none",
            ]
        )
    return rows


def _registry(store: str) -> ModelRegistry:
    from fednc.ops.registry.registry import ModelRegistry
    from fednc.ops.registry.store import DEFAULT_STORE

    return ModelRegistry(store or os.environ.get("FEDNC_STORE", "") or DEFAULT_STORE)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _column(column: Mapping[str, Any]) -> str:
    """Name, type and, of a tensor, its shape."""
    return " ".join(filter(None, [column["name"], column["dtype"], str(column.get("shape") or "")]))
