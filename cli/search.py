"""`fednc search`: tries settings of a run over clients that stay, and shows, suggests, compares and writes
them.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fednc.cli.options import Json
from fednc.cli.output import console, progress, say, show_table, write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.ops.search.plan import SearchPlan
    from fednc.ops.search.preference import Preferences
    from fednc.ops.search.study import SearchView, TrialView
    from fednc.server.storage.events import Event

File = Annotated[Path, typer.Argument(metavar="FILE.toml", help="Search file; docs/search.md shows one.")]
Settings = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE ...", help="Keys of the space, with TOML values.")
]


class FileOrCommand(TyperGroup):
    """Takes a search file where other groups only take the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`fednc search FILE` is `fednc search run FILE`; write `./show` for a file of that name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=FileOrCommand, add_completion=False, no_args_is_help=True)


@app.callback()
def search() -> None:
    """Search for the best settings of a run: `fednc search FILE.toml`. docs/search.md explains search files.

    A trial is a short run over the same clients, which stay: it costs its rounds and no start-up. Clients:
    `fednc client --server HOST:PORT --data SPEC`, without --once. A search that was stopped or killed is continued
    by the same command.
    """


@app.command("run")
def run_search(
    file: File,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Listen here instead of the run file's server.listen.")
    ] = "",
    certs: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder of `fednc certs server` instead of the run file's server.certs."),
    ] = "",
    trials: Annotated[int, typer.Option(min=0, help="Trials in all, instead of those in the file.")] = 0,
    json: Json = "",
) -> None:
    """Do the trials that are missing. The same as `fednc search FILE.toml`."""
    plan = _changed(_read(file), listen, certs, trials)
    view = _in_process(plan) if plan.file.local else _over_link(plan)
    _show(plan, view)
    if json:
        write_json(json, _as_json(plan, view))


@app.command()
def show(file: File, json: Json = "") -> None:
    """Show all trials, the best one, which settings matter, and write a picture."""
    from fednc.ops.search.importance import importance
    from fednc.ops.search.study import read_search

    plan = _read(file)
    view = read_search(plan)
    _show(plan, view)
    shares = importance(plan)
    if shares:
        rows = [[key, f"{100 * share:.0f} %"] for key, share in shares.items()]
        show_table(f"share of the differences in {next(iter(view.objectives))}", ["key", "share"], rows)
    if json:
        write_json(json, {**_as_json(plan, view), "importance": shares})


@app.command()
def best(
    file: File,
    write: Annotated[
        Path | None, typer.Option(metavar="RUN.toml", help="Write the best trial's run file here.")
    ] = None,
    by_preference: Annotated[
        bool,
        typer.Option("--by-preference", help="The trial that a person likes best, see `fednc search prefer`."),
    ] = False,
    trial: Annotated[int, typer.Option(min=-1, help="This trial instead.")] = -1,
    json: Json = "",
) -> None:
    """Show the best trial; --write makes a run file of it, with the rounds of the original run file."""
    from fednc.ops.search.result import write_run_file
    from fednc.ops.search.study import read_search

    plan = _read(file)
    view = read_search(plan)
    wanted = _preferences(plan).ranking().best if by_preference else trial
    found = _chosen(view, wanted)
    for key, value in found.settings.items():
        say(f"{key} = {value}")
    for name, value in found.values.items():
        say(f"{name}: {_number(value)}")
    if write:
        write_run_file(plan, found, write)
        say(f"{write}: fednc server {write}")
    if json:
        write_json(json, {"trial": found.number, "settings": found.settings, "values": found.values})


@app.command()
def suggest(file: File, settings: Settings) -> None:
    """Put your own guess in the queue: it is tried next. Keys that you leave out are chosen by the sampler."""
    import getpass

    from fednc.ops.search.study import suggest as put

    plan = _read(file)
    values = dict(map(_pair, settings))
    new = put(plan, values, who=getpass.getuser())
    shown = ", ".join(f"{key} = {value}" for key, value in values.items())
    say(f"{shown}: {'is tried next' if new else 'waits already'}")


@app.command()
def prefer(
    file: File,
    better: Annotated[int, typer.Option(min=-1, metavar="N", help="Trial N is better than --worse.")] = -1,
    worse: Annotated[int, typer.Option(min=-1, metavar="N", help="Trial N is worse than --better.")] = -1,
    propose: Annotated[
        int, typer.Option(min=0, metavar="N", help="Queue N new trials that you may like, judged by your answers.")
    ] = 0,
) -> None:
    """Say which of two trials is better, by their pictures and curves. Without options: asks until it knows the
    best.

    For what no metric measures. The answers are a study of their own, which optuna-dashboard shows too.
    """
    preferences = _preferences(_read(file))
    if (better < 0) != (worse < 0):
        raise ConfigError("--better and --worse go together: name two trials")
    if better >= 0:
        preferences.prefer(better, worse)
    elif not propose:
        _ask(preferences)
    ranking = preferences.ranking()
    order = sorted(zip(ranking.numbers, ranking.utility_N.tolist(), strict=True), key=lambda one: -one[1])
    show_table("by preference", ["trial", "utility"], [[number, utility] for number, utility in order])
    for values in preferences.propose(propose) if propose else []:
        say("queued: " + ", ".join(f"{key} = {value}" for key, value in values.items()))


# ---- the two places where trials run ----------------------------------------------------------------------------


def _in_process(plan: SearchPlan) -> SearchView:
    from fednc.bench.local_grid import LocalGrid
    from fednc.client.app.host import ClientConfig
    from fednc.ops.search.searcher import search as do
    from fednc.server.run_series import RunSeries

    local = plan.file.local
    assert local is not None
    clients = [
        ClientConfig(name=name, data=spec, device=local.device, val_share=local.val_share)
        for name, spec in local.specs.items()
    ]
    with progress("trials") as tell, LocalGrid(plan.run, clients) as grid:
        return do(plan, RunSeries(grid), _Teller(plan, tell))


def _over_link(plan: SearchPlan) -> SearchView:
    from fednc.common.files import private_folder
    from fednc.common.process.collector import spare_what_is_loaded
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.ops.search.searcher import search as do
    from fednc.server.run_series import serve_series
    from fednc.server.storage.event_log import EventLog

    private_folder(plan.folder)
    server = plan.run.server
    events = EventLog(plan.folder / "events.jsonl", server.events_mib, server.events_kept)
    events.listen(_Follower())
    spare_what_is_loaded()
    with progress("trials") as tell:
        serving = serve_series(plan.run, plan.folder, events, lambda series: do(plan, series, _Teller(plan, tell)))
        return run_until_interrupted(serving, stop_s=server.stop_s)


class _Follower:
    """A line for each event; that a client is ready again for the next trial is none."""

    def __init__(self) -> None:
        self._ready: set[str] = set()

    def __call__(self, event: Event) -> None:
        from fednc.server.storage.events import NodeLost, NodeReady

        if isinstance(event, NodeReady):
            if event.node in self._ready:
                return
            self._ready.add(event.node)
        elif isinstance(event, NodeLost):
            self._ready.discard(event.node)
        say(event.text)


class _Teller:
    """A line for each trial that has ended."""

    def __init__(self, plan: SearchPlan, tell: Any) -> None:
        self._plan, self._tell = plan, tell

    def __call__(self, trial: TrialView) -> None:
        settings = ", ".join(f"{key} = {_number(value)}" for key, value in trial.settings.items())
        values = ", ".join(f"{name} {_number(value)}" for name, value in trial.values.items())
        say(f"trial {trial.number}: {settings}: {values or f'{trial.state}: {trial.reason}'}")
        self._tell(min(1.0, (trial.number + 1) / self._plan.file.trials))


# ---- small parts ------------------------------------------------------------------------------------------------


def _read(file: Path) -> SearchPlan:
    from fednc.ops.search.plan import read_search_file

    return read_search_file(file)


def _changed(plan: SearchPlan, listen: str, certs: str, trials: int) -> SearchPlan:
    from dataclasses import replace

    from fednc.common.address import parse_address

    if listen:
        parse_address(listen, "--listen", may_choose_port=True)
    wanted = {key: value for key, value in {"listen": listen, "certs": certs}.items() if value}
    server = plan.run.server.model_copy(update=wanted)
    file = plan.file.model_copy(update={"trials": trials}) if trials else plan.file
    return replace(plan, file=file, run=plan.run.model_copy(update={"server": server}))


def _preferences(plan: SearchPlan) -> Preferences:
    from fednc.ops.search.preference import Preferences

    return Preferences(plan)


def _ask(preferences: Preferences) -> None:
    """Ask about pairs until the best trial is known, or the person stops."""
    from fednc.ops.search.picture import draw_pair

    if not console.is_terminal:
        raise ConfigError("no terminal to ask on: give --better and --worse")
    place = preferences.folder / "pair.png"
    while (pair := preferences.ranking().next_pair()) is not None:
        one, other = (preferences.trials[number] for number in pair)
        drawn = draw_pair(one, other, preferences.view.metric, place)
        for trial in (one, other):
            say(f"trial {trial.number}: {trial.settings}, {trial.values}, {trial.folder}")
        answer = typer.prompt(
            f"better (picture: {drawn or 'needs matplotlib'}): {pair[0]}, {pair[1]}, or s to stop"
        )
        if answer.strip() not in map(str, pair):
            return
        chosen = int(answer)
        preferences.prefer(chosen, pair[1] if chosen == pair[0] else pair[0])


def _chosen(view: SearchView, wanted: int) -> TrialView:
    if wanted < 0:
        found = view.best_trial
        if found is None:
            raise ConfigError(f"search {view.name!r} has no completed trial yet")
        return found
    return next(
        (trial for trial in view.trials if trial.number == wanted and trial.values),
        None,
    ) or _no_such(view, wanted)


def _no_such(view: SearchView, wanted: int) -> TrialView:
    known = ", ".join(str(trial.number) for trial in view.trials if trial.values) or "none"
    raise ConfigError(f"trial {wanted} of {view.name!r} has not been completed; these have: {known}")


def _show(plan: SearchPlan, view: SearchView) -> None:
    from fednc.ops.search.picture import PICTURE, draw_search

    shown = [trial for trial in view.trials if not trial.superseded]
    keys, names = list(plan.space.dimensions), list(view.objectives)
    rows = [
        [
            f"{'*' if trial.number in view.best else ''}{trial.number}",
            trial.state,
            *(_number(trial.settings.get(key, "")) for key in keys),
            *(_number(trial.values.get(name, "")) for name in names),
            max(trial.curve, default=0),
            "" if trial.seconds is None else f"{trial.seconds:.1f}",
        ]
        for trial in shown
    ]
    show_table(f"search {view.name}; * is best", ["trial", "state", *keys, *names, "rounds", "s"], rows)
    for trial in shown:
        if trial.state == "failed":
            say(f"trial {trial.number} failed: {trial.reason}", style="yellow")
    drawn = draw_search(view, plan.folder / PICTURE)
    if drawn:
        say(f"picture: {drawn}")


def _as_json(plan: SearchPlan, view: SearchView) -> dict[str, Any]:
    from dataclasses import asdict

    found = view.best_trial
    return {
        "name": view.name,
        "storage": plan.shown_storage,
        "objectives": view.objectives,
        "best": view.best,
        "best_settings": found.settings if found else None,
        "trials": [asdict(trial) for trial in view.trials],
    }


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pair(text: str) -> tuple[str, Any]:
    """KEY=VALUE, with a value as in TOML; a text needs no quotes."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{text}: expected KEY=VALUE, e.g. train.lr=0.01")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
