"""`fednc server RUN.toml`: serve one run to its end. `fednc server --app DIR`: serve a run of any Flower app."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednc.cli.options import AppDir, Json
from fednc.cli.output import write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.common.config.run import RunConfig

RunFile = Annotated[Path | None, typer.Argument(metavar="RUN.toml", help="Run file; `fednc init` writes one.")]
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
        help="Folder of the run; a run whose checkpoints are there is continued. Default: a new folder.",
    ),
]


Certs = Annotated[
    str, typer.Option(metavar="DIR", help="Folder of `fednc certs server` instead of the run file's server.certs.")
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Plaintext and no authentication, beyond this machine too: for closed networks."
    ),
]


RunSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config", "-c", metavar="KEY=VALUE", help="With --app: set keys of the app's configuration."
    ),
]


Nodes = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="With --app: start the app when N clients are ready; default: rounds.min_clients, which is 2.",
    ),
]
AnyCode = Annotated[
    bool,
    typer.Option(
        "--any-code", help="With --app: accept clients whose copy of the app has different Python files."
    ),
]


def command(
    run_file: RunFile = None,
    app: AppDir = None,
    run_config: RunSettings = None,
    nodes: Nodes = 0,
    any_code: AnyCode = False,
    folder: Folder = "",
    listen: Listen = "",
    certs: Certs = "",
    insecure: Insecure = False,
    test_data: TestData = "",
    json: Json = "",
) -> None:
    """Serve one run: wait for clients, run its rounds, write `runs/<id>/`.

    The run file decides everything. To continue a run whose server was stopped or killed, start it again with the
    same run file and --folder. Clients: `fednc client --server HOST:PORT --data SPEC`. Ctrl-C ends the run and
    tells the clients. With --app, only the tables `server` and `rounds` of a run file are used.
    """
    from fednc.common.address import parse_address
    from fednc.common.config.run import RunConfig, read_run_file

    if run_file is None and app is None:
        raise ConfigError("nothing to serve: give a run file (`fednc init` writes one), or --app DIR")
    run = read_run_file(run_file) if run_file else RunConfig()
    wanted = {"listen": listen, "certs": certs, "insecure": insecure}
    if listen:
        parse_address(listen, "--listen", may_choose_port=True)
    server = run.server.model_copy(update={key: value for key, value in wanted.items() if value})
    run = run.model_copy(update={"server": server})
    if test_data:
        run = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"test": test_data})})
    if nodes:
        run = run.model_copy(update={"rounds": run.rounds.model_copy(update={"min_clients": nodes})})
    if app:
        _serve_app(app, run_config or [], run, folder, json, any_code)
    else:
        _serve_run(run, folder, json)


def _serve_run(run: RunConfig, folder: str, json: str) -> None:
    from fednc.bench.run_pictures import draw, draw_probe
    from fednc.cli.live import following
    from fednc.common.process.collector import spare_what_is_loaded
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.server.main import run_server
    from fednc.server.operations.trackers import tracked
    from fednc.server.storage.event_log import EventLog
    from fednc.server.storage.events import Event, ProbeDecided
    from fednc.server.storage.folder_lock import claimed
    from fednc.server.storage.run_folder import run_folder

    place = run_folder(run, folder)

    def show_probe(event: Event) -> None:
        if isinstance(event, ProbeDecided):  # an operator may be asked about it before the run has ended
            draw_probe(place)

    with claimed(place):
        events = EventLog(place / "events.jsonl", run.server.events_mib, run.server.events_kept)
        events.listen(show_probe)
        spare_what_is_loaded()
        with following(run, events) as live, tracked(run, place.name, place, events):
            serving = run_server(run, place, events, on_listening=live.watch)
            finished = run_until_interrupted(serving, stop_s=run.server.stop_s)
        draw(place)
    if json:
        write_json(json, {**finished.summary, "folder": str(finished.folder)})


def _serve_app(path: Path, overrides: list[str], run: RunConfig, folder: str, json: str, any_code: bool) -> None:
    from fednc.cli.live import print_lines
    from fednc.common.flower_adapter import read_app
    from fednc.common.process.collector import spare_what_is_loaded
    from fednc.common.process.interrupt import run_until_interrupted
    from fednc.server.foreign_app import run_app, settings_for
    from fednc.server.storage.event_log import EventLog
    from fednc.server.storage.folder_lock import claimed
    from fednc.server.storage.run_folder import run_folder

    app = read_app(path)
    run = settings_for(app, run)
    place = run_folder(run, folder)
    with claimed(place):
        events = EventLog(place / "events.jsonl", run.server.events_mib, run.server.events_kept)
        print_lines(events)
        spare_what_is_loaded()
        serving = run_app(app, overrides, run, place, events, any_code=any_code)
        summary = run_until_interrupted(serving, stop_s=run.server.stop_s)
    if json:
        write_json(json, {**summary, "folder": str(place)})
