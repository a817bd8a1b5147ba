"""`fednc pipeline`: run a pipeline, show how it stands, watch for reasons to run it again.

Prints what `fednc.ops.pipelines` does; decides nothing.
"""

from __future__ import annotations

import getpass
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, say_error, show_table, write_json
from fednc.common.errors import ConfigError, FedncError

if TYPE_CHECKING:
    from fednc.in_process import Running
    from fednc.ops.pipelines.journal import Cause, PipelineRun
    from fednc.ops.pipelines.pipeline_file import PipelineFile
    from fednc.ops.pipelines.runner import Runner
    from fednc.ops.pipelines.work import Carriers, RunOrder, SearchOrder
    from fednc.ops.search.study import SearchView
    from fednc.server.storage.events import Event

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="From the check of a run to the served model, step by step: each step is done once, and a "
    "pipeline that was killed continues.",
)

PipelinePath = Annotated[Path, typer.Argument(metavar="FILE.toml", help="The pipeline file; docs/pipelines.md.")]
On = Annotated[
    str,
    typer.Option(
        metavar="WHERE", help="Where clients work, instead of the file's `on`: process, link or simulation."
    ),
]
_DIGITS = 12  # of a digest, for people


@app.command()
def run(
    path: PipelinePath,
    on: On = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")] = "",
    wait: Annotated[
        bool, typer.Option(help="Wait at the gate for a person; otherwise run this again after the verdict.")
    ] = True,
    json: Json = "",
) -> None:
    """Run a pipeline: check, search, statistics, init, train, sessions, evaluate, gate, register, deploy.

    A run that was interrupted is continued. Steps whose inputs have not changed since an earlier run are not done
    again. Exit code 1 if the gate rejects, or waits and --no-wait was given.
    """
    from fednc.ops.pipelines.journal import OPERATOR, Cause, Journal

    runner = _runner(path, on, wait=wait)
    cause = Cause(OPERATOR, f"{getpass.getuser()} started it" + (f": {reason}" if reason else ""))
    try:
        runner(cause)
    finally:
        last = Journal(runner.file.place).latest()
        if last:
            _show(runner.file, last)
            if json:
                write_json(json, _as_json(runner.file, last))


@app.command()
def show(
    path: PipelinePath,
    number: Annotated[int, typer.Option("--run", min=0, metavar="N", help="This run; 0: the last one.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the steps and their states.")
    ] = None,
    json: Json = "",
) -> None:
    """Show how a pipeline stands: the steps of its last run, and why each run began."""
    from fednc.ops.pipelines.journal import Journal
    from fednc.ops.pipelines.picture import svg_of
    from fednc.ops.pipelines.pipeline_file import read_pipeline
    from fednc.ops.run_folders.folder import is_held

    file, _ = read_pipeline(path)
    runs = Journal(file.place).runs()
    if not runs:
        raise ConfigError(f"{path}: the pipeline {file.name!r} has not run yet; `fednc pipeline run {path}`")
    found = [one for one in runs if one.number == number] if number else runs[-1:]
    if not found:
        raise ConfigError(f"--run {number}: there is no such run; the last one is {runs[-1].number}")
    rows = [[one.number, _time(one.began_at), one.on, _outcome(file, one), one.why] for one in runs[-20:]]
    show_table(f"runs of {file.name}", ["run", "began", "on", "outcome", "why"], rows)
    _show(file, found[0])
    if picture:
        text = svg_of(file.name, found[0], is_at_work=is_held(file.place))
        picture.write_text(text, encoding="utf-8")
        say(f"wrote {picture}")
    if json:
        write_json(json, {**_as_json(file, found[0]), "runs": [_as_json(file, one) for one in runs]})


@app.command()
def watch(
    path: PipelinePath,
    on: On = "",
    once: Annotated[bool, typer.Option("--once", help="Look once, run if there is a reason, and end.")] = False,
) -> None:
    """Run a pipeline whenever there is a reason: new data, an alarm, the schedule, an answer of the gate.

    Never blocks at the gate: it goes on once somebody has answered, and newer data replace a candidate that waits.
    Looks every `triggers.poll_s` seconds. Ctrl-C ends it.
    """
    from fednc.ops.pipelines.work import GateWaitsError

    say(f"watching {path}")
    runner = _runner(path, on, wait=False)
    while True:
        try:
            runner = _runner(path, on, wait=False)  # the files are read anew: both may change, or be half saved
            cause = _reason(runner)
            if cause:
                runner(cause)
        except GateWaitsError as e:
            say(str(e))
        except FedncError as e:
            if once:
                raise
            say_error(e)
        if once:
            return
        time.sleep(runner.file.triggers.poll_s)


def _reason(runner: Runner) -> Cause | None:
    """Why to run now."""
    from fednc.ops.pipelines.look import is_due, look
    from fednc.ops.pipelines.triggers import due

    cause = due(runner.file, runner.run)
    if cause is None and is_due(runner.file):
        say("looking at the clients with the served model")
        cause = look(runner.file, runner.run, runner.carriers)
    return cause


def _runner(path: Path, on: str, *, wait: bool) -> Runner:
    from fednc.ops.pipelines.pipeline_file import read_pipeline
    from fednc.ops.pipelines.runner import Runner

    file, run = read_pipeline(path, on)
    return Runner(file, run, carriers(file.on), say, wait)


def carriers(on: str) -> Carriers:
    from fednc.ops.pipelines.on_flower import on_flower
    from fednc.ops.pipelines.over_link import over_link, search_over_link
    from fednc.ops.pipelines.work import Carriers

    return {
        "process": Carriers(in_process, search_in_process),
        "link": Carriers(over_link, search_over_link),
        "simulation": Carriers(on_flower, search_in_process),  # which gives the same bits, without Ray's start-ups
    }[on]


def search_in_process(order: SearchOrder) -> SearchView:
    """Do the trials of a search in this process, over clients that stay."""
    from functools import partial

    from fednc.bench.local_grid import LocalGrid
    from fednc.client.app.host import ClientConfig
    from fednc.ops.pipelines.over_link import tell_trial
    from fednc.ops.search.searcher import search
    from fednc.server.run_series import RunSeries

    clients = [
        ClientConfig(name=name, data=spec, device=order.file.device) for name, spec in order.clients.items()
    ]
    with LocalGrid(order.plan.run, clients) as grid:
        return search(order.plan, RunSeries(grid), partial(tell_trial, order))


def in_process(order: RunOrder) -> None:
    """Carry a federated run in this process, one client after the other."""
    import fednc
    from fednc.in_process import INTERRUPTED

    class Heard(fednc.Callback):
        """Passes the events of the run on."""

        def on_event(self, run: Running, event: Event) -> None:
            del run
            order.heard(event)

    done = fednc.run(
        order.run,
        order.clients,
        [Heard()],
        order.folder,
        device=order.file.device,
        progress=False,
        resume=True,
    )
    if done.ended == INTERRUPTED:
        raise KeyboardInterrupt


def _show(file: PipelineFile, run: PipelineRun) -> None:
    from fednc.ops.pipelines.picture import shown_state
    from fednc.ops.run_folders.folder import is_held

    rows = [
        [
            step.name,
            shown_state(step, is_at_work=is_held(file.place)),
            f"{step.seconds:.1f}" if step.seconds else "",
            step.digest[:_DIGITS],
            step.note,
        ]
        for step in run.steps
    ]
    title = f"{file.name}, run {run.number}: {run.why}"
    show_table(title, ["step", "state", "seconds", "inputs", "note"], rows)


def _outcome(file: PipelineFile, run: PipelineRun) -> str:
    """Where a run is, or how it ended, in a few words."""
    from fednc.ops.pipelines.picture import shown_state
    from fednc.ops.run_folders.folder import is_held

    for step in run.steps:
        if not step.state.is_over:
            return f"{step.name} {shown_state(step, is_at_work=is_held(file.place))}"
    return "done"


def _as_json(file: PipelineFile, run: PipelineRun) -> dict[str, Any]:
    values = asdict(run)
    return {**values, "folder": str(run.folder), "pipeline": file.name, "outcome": _outcome(file, run)}


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
