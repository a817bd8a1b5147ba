"""`fednc plugins`: which tasks, methods and trackers are installed, where they come from, whether they work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, show_table, write_json
from fednc.common import plugins
from fednc.common.errors import ConfigError, FedncError
from fednc.common.plugins import KINDS, METHODS, TASKS, TRACKERS, Plugin

app = typer.Typer(invoke_without_command=True, help=__doc__)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a task, method or tracker.")]
Data = Annotated[
    str, typer.Option(metavar="SPEC", help="Data that a task reads; a few hundred examples are plenty.")
]
RunFile = Annotated[
    str,
    typer.Option("--run", metavar="RUN.toml", help="Run file with the task's options; default: suggested ones."),
]


@app.callback()
def show(context: typer.Context, json: Json = "") -> None:
    """List what is installed. `fednc plugins check NAME` tests one of them."""
    if context.invoked_subcommand:
        return
    rows = [_looked_at(plugin) for group in KINDS for plugin in plugins.installed(group)]
    columns = ("kind", "name", "version", "distribution", "from", "state")
    show_table("plug-ins", columns, [[row[column] for column in columns] for row in rows])
    if json:
        write_json(json, {"plugins": rows})


@app.command("check")
def check(name: Name, data: Data = "", run: RunFile = "", json: Json = "") -> None:
    """Test one plug-in: that it loads and, for a task, everything that fednc.testing asks of it."""
    found = [plugin for group in KINDS for plugin in plugins.installed(group) if plugin.name == name]
    if not found:
        raise ConfigError(f"{name[:80]!r} is not installed here; `fednc plugins` lists what is")
    outcomes = {}
    for group in dict.fromkeys(plugin.group for plugin in found):
        plugin = plugins.find(group, name)
        outcomes[f"{plugin.kind} {name}: it loads"] = _failure(partial(_load, plugin))
        if group == TASKS and not any(outcomes.values()):
            outcomes |= _tested(name, data, run)
    for what, failure in outcomes.items():
        say(f"FAILED  {what}: {failure}" if failure else f"ok      {what}", style="red" if failure else "")
    failed = sum(map(bool, outcomes.values()))
    if json:
        write_json(json, {"name": name, "failed": failed, "promises": outcomes})
    if failed:
        raise FedncError(f"{name}: {failed} of {len(outcomes)} promises do not hold")


def _tested(name: str, data: str, run: str) -> dict[str, str]:
    """Why each promise of a task does not hold; empty text: it does."""
    if not data:
        raise ConfigError(f"--data: say which data task {name!r} is tested with, e.g. --data npz:PATH")
    from fednc.testing import TaskContract, promises

    contract = type("Checked", (TaskContract,), {"task": name, "data": data, **_given(run, name)})
    return {what: _failure(test) for what, test in promises(contract)}


def _given(run: str, name: str) -> dict[str, Any]:
    """Options and tables of a run file, for the contract."""
    if not run:
        return {}
    import tomllib
    from pathlib import Path

    from fednc.common.config.run import read_run_file

    path = Path(run)
    read = read_run_file(path)
    if read.task.name != name:
        raise ConfigError(f"--run {run}: its task is {read.task.name!r}, not {name!r}")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    options = {key: value for key, value in tables.pop("task", {}).items() if key != "name"}
    dropped = ("server", "split", "sessions", "evaluate")  # of the run's own place and data
    return {"options": options, "tables": {key: value for key, value in tables.items() if key not in dropped}}


def _failure(test: Callable[[], object]) -> str:
    """What a test raised, in one line; empty: nothing."""
    try:
        test()
    except Exception as e:  # a stranger's code may raise anything
        told = str(e) if isinstance(e, AssertionError | FedncError) else f"{type(e).__name__}: {e}"
        return told or type(e).__name__
    return ""


def _looked_at(plugin: Plugin) -> dict[str, str]:
    """One line of the list; imports the plug-in."""
    row = {
        "kind": plugin.kind,
        "name": plugin.name,
        "version": "",
        "distribution": f"{plugin.distribution} {plugin.release}",
        "from": "built in" if plugin.is_built_in else "plug-in",
        "state": "",
    }
    try:
        loaded = _load(plugins.find(plugin.group, plugin.name))
    except Exception as e:
        return {**row, "state": f"not usable: {e}"}
    return {**row, "version": str(getattr(loaded, "version", "")), "state": "ok"}


def _load(plugin: Plugin) -> Any:
    """The class, checked as its registry does. Raises ConfigError."""
    if plugin.group == TASKS:
        from fednc.common.tasks import discovery

        return discovery.load(plugin)
    if plugin.group == METHODS:
        from fednc.common.methods import registry

        return registry.load(plugin)
    if plugin.group == TRACKERS:
        from fednc.server.operations import trackers

        return trackers.load(plugin)
    return plugin.load()
