"""`fednc compare`: the command line of comparisons: options, progress, and the tables at the end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import progress, say, write_json
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.bench.compare.report import Compared

File = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Comparison file, as in bench/configs/.")]
Seeds = Annotated[str, typer.Option(metavar="A,B,C", help="Seeds, instead of those in the file.")]
Settings = Annotated[
    str, typer.Option(metavar="A,B,C", help="Only these settings of the file; the others keep their results.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=PATH", help="Path of the data that the file calls NAME."),
]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes; each uses one thread.")]
Engine = Annotated[
    Literal["processes", "ray"],
    typer.Option(help="`ray`: on the cluster that RAY_ADDRESS names, or on --workers CPUs of this machine."),
]
Batched = Annotated[
    bool, typer.Option("--batched", help="Train the clients of a round in one batch of models where that pays.")
]
Results = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Folder for results; each comparison has its own folder in it.")
]


def command(
    config: File,
    seeds: Seeds = "",
    settings: Settings = "",
    data: Data = None,
    workers: Workers = 2,
    device: Device = "cpu",
    engine: Engine = "processes",
    batched: Batched = False,
    results: Results = Path("results"),
    json: Json = "",
) -> None:
    """Compare methods on this machine: same splits, same number of steps, learning rates tuned in the same way.

    If it is interrupted, start it again: it does only the missing runs.
    Results are in runs.jsonl.gz, table.md and pictures. docs/compare.md
    describes comparison files.
    """
    from fednc.bench.compare.engine import compare
    from fednc.bench.compare.plan import read_comparison
    from fednc.bench.compare.report import on_data, results_table
    from fednc.bench.compare.rows import Bench

    plan = read_comparison(config, _whole_numbers(seeds) if seeds else None)
    places = dict(map(_pair, data or []))
    chosen = tuple(settings.split(",")) if settings else ()
    options = [part for name in sorted(places) for part in ("--data", f"{name}=PATH")]
    options += ["--settings", settings] if settings else []
    options += ["--batched"] if batched else []
    said = shlex.join(["fednc", "compare", config.name, "--seeds", ",".join(map(str, plan.seeds)), *options])
    bench = Bench(
        folder=results / plan.name, command=said, device=device, workers=workers, engine=engine, batched=batched
    )
    with progress("rounds") as show:
        compared = compare(plan, places, bench, show, settings=chosen, also=read_comparison(config).seeds)
    say(on_data("Test", compared.metric))
    for setting in compared.plan.settings:
        say("")
        say(setting.name)
        for line in results_table(compared, setting.name):
            say(line)
    say("")
    say(f"Results are in {bench.folder}")
    if json:
        write_json(json, _as_json(compared, said))


def _as_json(compared: Compared, said: str) -> dict[str, object]:
    """All results; `rows` is a short form of runs with sessions."""
    from fednc.bench.compare.class_sessions import session_rows

    rows = session_rows(compared.final)
    return {
        "name": compared.plan.name,
        "command": said,
        **({"rows": rows} if rows else {}),
        "results": compared.final,
        "tuning": compared.tuning,
    }


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise ConfigError(f"--seeds {text}: expected whole numbers separated by commas, e.g. --seeds 4,5,6") from e


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--data {text}: expected NAME=PATH, e.g. --data fashion=fashion.npz")
    return name, path
