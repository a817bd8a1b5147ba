"""`fednc runs`: list the runs in a folder, and compare some of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fednc.cli.options import Json
from fednc.cli.output import console, say, show_table, write_json
from fednc.common.errors import MissingExtraError

if TYPE_CHECKING:
    from fednc.ops.run_folders.folder import RunFolder


class FolderOrCommand(TyperGroup):
    """Takes a folder where other groups only take the name of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`fednc runs FOLDER` is `fednc runs --in FOLDER`; write `./compare` for a folder of that name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["--in", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(cls=FolderOrCommand, add_completion=False, invoke_without_command=True)

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 40  # characters


@app.callback()
def list_runs(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option("--in", metavar="FOLDER", help="Folder with runs; `fednc runs FOLDER` is the same.")
    ] = Path("runs"),
    json: Json = "",
) -> None:
    """List the runs in a folder: method, data, rounds, primary metric and state.

    States: running (a process serves it), finished, stopped, failed, resumable (start the server again with the
    same run file and --folder), damaged, not a run. Runs one or two folders below are found too.
    """
    if context.invoked_subcommand:
        return
    from fednc.ops.run_folders.folder import State, runs_in

    found = runs_in(folder)
    rows = [_row(run, folder) for run in found]
    if rows:
        show_table(
            f"runs in {folder}", ["run", "method", "data", "rounds", "metric", "last", "best", "state"], rows
        )
    else:
        say(f"{folder}: no runs yet; `fednc server RUN.toml` makes one")
    for run in found:
        if run.problem:
            say(f"{_name(run, folder)}: {run.problem}", style="yellow")
    if any(run.state is State.RESUMABLE for run in found):
        say("resumable: fednc server RUN.toml --folder runs/<id>, with the run file that it had")
    if json:
        write_json(json, {"folder": str(folder), "runs": [_as_json(run) for run in found]})


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="A B [C ...]", help="Folders of two or more runs.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Picture with the curves.")] = Path("compare.png"),
    json: Json = "",
) -> None:
    """Compare runs: curves as a picture, and a table with metric, traffic, time and differing keys.

    Without matplotlib (extra `demo`) the curves are only drawn in the terminal.
    """
    from fednc.ops.run_folders.compare import differing_keys, labels, to_compare

    found = to_compare(runs)
    names, metric = labels(found), found[0].history.primary
    rows = [
        [
            name,
            run.method,
            f"{run.done}/{run.planned or '?'}",
            _shown(run, run.last),
            _shown(run, run.best),
            f"{run.bytes_up / 2**20:.1f}",
            f"{run.bytes_down / 2**20:.1f}",
            f"{run.seconds:.1f}",
            str(run.state),
        ]
        for name, run in zip(names, found, strict=True)
    ]
    columns = ["run", "method", "rounds", f"last {metric.name}", "best", "MiB up", "MiB down", "seconds", "state"]
    show_table("runs", columns, rows)
    keys = differing_keys(found)
    if keys:
        show_table(
            "keys of the run files that differ",
            ["key", *names],
            [[key, *map(str, values)] for key, values in keys.items()],
        )
    for name, run in zip(names, found, strict=True):
        say(f"{_spark([value for _, value in run.history.curve])}  {name}")
    picture = _draw(output, {name: run.history.curve for name, run in zip(names, found, strict=True)}, found[0])
    if json:
        values = [{"label": name, **_as_json(run)} for name, run in zip(names, found, strict=True)]
        write_json(json, {"runs": values, "differing": keys, "picture": picture})


def _draw(path: Path, series: dict[str, list[tuple[int, float]]], first: RunFolder) -> str:
    """Write the picture; returns its path, or an empty text if matplotlib is missing."""
    from fednc.bench.compare.plots import curves

    try:
        curves(path, series, first.history.primary)
    except MissingExtraError as e:
        say(f"no picture: {e}", style="yellow")
        return ""
    say(f"curves: {path}")
    return str(path)


def _row(run: RunFolder, folder: Path) -> list[object]:
    rounds = f"{run.done}/{run.planned}" if run.planned is not None else str(run.done)
    metric = run.history.primary.name if run.history.curve else "-"
    known = bool(run.config or run.done)
    return [
        _name(run, folder),
        run.method or "-",
        run.data or "-",
        rounds if known else "-",
        metric,
        _shown(run, run.last),
        _shown(run, run.best),
        str(run.state),
    ]


def _name(run: RunFolder, folder: Path) -> str:
    return run.path.name if run.path == folder else str(run.path.relative_to(folder))


def _shown(run: RunFolder, value: float | None) -> str:
    return "-" if value is None else run.history.primary.show(value)


def _spark(values: list[float]) -> str:
    """A curve in one line, from its lowest to its highest value."""
    step = max(1, -(-len(values) // _CURVE_WIDTH))
    kept = values[::step]
    low, high = min(kept), max(kept)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    line = "".join(_BARS[round((value - low) * scale)] for value in kept)
    return line if console.is_terminal or _prints_bars() else " ".join(f"{value:.3g}" for value in kept)


def _prints_bars() -> bool:
    return (console.encoding or "").lower().startswith("utf")


def _as_json(run: RunFolder) -> dict[str, Any]:
    return {
        "folder": str(run.path),
        "state": str(run.state),
        "problem": run.problem,
        "method": run.method,
        "task": run.config.get("task", {}).get("name"),
        "data": run.data,
        "rounds": run.done,
        "planned": run.planned,
        "metric": run.history.primary.to_json(),
        "last": run.last,
        "best": run.best,
        "curve": [list(point) for point in run.history.curve],
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "seconds": run.seconds,
    }
