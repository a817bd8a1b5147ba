"""`fednc plugins`: which tasks, methods and trackers are installed, where they come from, whether they work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, show_table, write_json
from fednc.common import plugins
from fednc.common.distributions import licence_of
from fednc.common.errors import ConfigError, FedncError
from fednc.common.plugins import KINDS, METHODS, TASKS, TRACKERS, Plugin
from fednc.ops import quarantine

app = typer.Typer(invoke_without_command=True, help=__doc__)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a task, method or tracker.")]
Data = Annotated[
    str, typer.Option(metavar="SPEC", help="Data that a task reads; a few hundred examples are plenty.")
]
RunFile = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="RUN.toml",
        help="Run file with the plug-in's options. Default: those that a task suggests, those of a method.",
    ),
]


@app.callback()
def show(context: typer.Context, json: Json = "") -> None:
    """List what is installed, and what is in quarantine. `fednc plugins check NAME` tests one of them.

    A plug-in that failed its tests is in quarantine: pipelines refuse it until another build of it passes.
    """
    if context.invoked_subcommand:
        return
    rows = [_looked_at(plugin) for group in KINDS for plugin in plugins.installed(group)]
    columns = ("kind", "name", "version", "distribution", "licence", "from", "state")
    show_table("plug-ins", columns, [[row[column] for column in columns] for row in rows])
    if json:
        write_json(json, {"plugins": rows})


@app.command("check")
def check(name: Name, data: Data = "", run: RunFile = "", json: Json = "") -> None:
    """Test one plug-in: that it loads and, for a task or a method, everything that fednc.testing asks of it.

    A tracker is only loaded, because it would send the rounds of a test to the service that it reports to.
    """
    found = [plugin for group in KINDS for plugin in plugins.installed(group) if plugin.name == name]
    if not found:
        raise ConfigError(f"{name[:80]!r} is not installed here; `fednc plugins` lists what is")
    outcomes: dict[str, str] = {}
    for group in dict.fromkeys(plugin.group for plugin in found):
        plugin = plugins.find(group, name)
        of_plugin = {f"{plugin.kind} {name}: it loads": _failure(partial(_load, plugin))}
        if not any(of_plugin.values()):
            of_plugin |= {what: _failure(test) for what, test in _tests(group, name, data, run)}
        quarantine.keep(plugin, of_plugin)
        outcomes |= of_plugin
    for what, failure in outcomes.items():
        say(f"FAILED  {what}: {failure}" if failure else f"ok      {what}", style="red" if failure else "")
    failed = sum(map(bool, outcomes.values()))
    if json:
        write_json(json, {"name": name, "failed": failed, "promises": outcomes})
    if failed:
        raise FedncError(f"{name}: {failed} of {len(outcomes)} promises do not hold")


def _tests(group: str, name: str, data: str, run: str) -> Iterable[tuple[str, Callable[[], None]]]:
    """(what is promised, the test of it) of a task or a method. Raises ConfigError: an option is missing."""
    if group == TRACKERS:
        return ()
    from fednc.testing import MethodContract, TaskContract, promises

    if group == METHODS:
        return promises(type("Checked", (MethodContract,), {"method": name, "options": _method_keys(run, name)}))
    _check_options(name, data, run)
    return promises(type("Checked", (TaskContract,), {"task": name, "data": data, **_given(run, name)}))


def _check_options(name: str, data: str, run: str) -> None:
    """Raises ConfigError: there is no data to test a task with, or its keys under [task] are not given."""
    from fednc.common.tasks import discovery
    from fednc.common.tasks.api import Task

    if not data:
        raise ConfigError(f"--data: say which data task {name!r} is tested with, e.g. --data npz:PATH")
    suggests = getattr(discovery.task_class(name).suggest_options, "__func__", None)
    if not run and suggests is Task.suggest_options.__func__:  # type: ignore[attr-defined]
        raise ConfigError(
            f"--run: task {name!r} suggests no options for data; give a run file with its keys under [task]: "
            f"fednc plugins check {name} --data {data} --run RUN.toml"
        )


def _method_keys(run: str, name: str) -> dict[str, Any]:
    """The keys of [method] in a run file."""
    if not run:
        from fednc.common.methods import registry

        needed = [key for key, field in registry.get(name).Options.model_fields.items() if field.is_required()]
        if needed:
            raise ConfigError(
                f"--run: method {name!r} needs a value for {', '.join(needed)}; give a run file with it under "
                f"[method]: fednc plugins check {name} --run RUN.toml"
            )
        return {}
    from pathlib import Path

    from fednc.common.config.run import read_run_file

    read = read_run_file(Path(run)).method.name
    if read != name:
        raise ConfigError(f"--run {run}: its method is {read!r}, not {name!r}")
    return {key: value for key, value in _tables(run)["method"].items() if key != "name"}


def _tables(run: str) -> dict[str, Any]:
    """A run file as plain values."""
    import tomllib
    from pathlib import Path

    return tomllib.loads(Path(run).read_text(encoding="utf-8"))


def _given(run: str, name: str) -> dict[str, Any]:
    """Options and tables of a run file, for the contract."""
    if not run:
        return {}
    from pathlib import Path

    from fednc.common.config.run import read_run_file

    read = read_run_file(Path(run))
    if read.task.name != name:
        raise ConfigError(f"--run {run}: its task is {read.task.name!r}, not {name!r}")
    tables = _tables(run)
    options = {key: value for key, value in tables.pop("task", {}).items() if key != "name"}
    dropped = ("server", "split", "sessions", "evaluate")  # these belong to the user's run, not to the test
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
        "licence": licence_of(plugin.distribution),
        "from": "built in" if plugin.is_built_in else "plug-in",
        "state": "",
    }
    checked = None if plugin.is_built_in else quarantine.known(plugin)
    if checked is not None:
        row |= {"code_sha256": checked.code_sha256, "check": checked.outcome}
    try:
        loaded = _load(plugins.find(plugin.group, plugin.name))
    except Exception as e:
        return {**row, "state": f"not usable: {e}"}
    state = f"quarantined: {checked.why}" if checked is not None and checked.outcome == quarantine.FAILED else "ok"
    return {**row, "version": str(getattr(loaded, "version", "")), "state": state}


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
