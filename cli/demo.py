"""`fednc demo`: a small federation on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fednc.cli.options import Json

Seed = Annotated[int, typer.Option(min=-1, help="Seed of split and training; -1: the default of the demo.")]
Runs = Annotated[str, typer.Option(metavar="FOLDER", help="Folder for results.")]


def command(seed: Seed = -1, runs: Runs = "runs", json: Json = "") -> None:
    """Run fedavg and then fednc with one server and four clients, on handwritten digits with label skew.

    Takes about a minute on two cores. Writes runs/<id>/ with summary.json, curves.png, geometry.png and the final
    model, which `fednc predict` reads.
    """
    from fednc.bench.demo import run_demo
    from fednc.cli.live import following
    from fednc.cli.output import say, show_table, write_json

    comparison = run_demo(following, seed=None if seed < 0 else seed, runs=runs)
    columns = ("method", "lr", "accuracy", "best", "last 5 rounds", "rounds to fedavg's best", "drift", "nc1")
    keys = ("lr", "accuracy", "best", "last5", "rounds_to_fedavg_best", "drift", "nc1")
    methods = comparison.summary["methods"]
    show_table("comparison", columns, [[name, *(one[key] for key in keys)] for name, one in methods.items()])
    say(f"{comparison.summary['duration_s']:.0f} s in total. Files in {comparison.folder}:")
    for name in ("summary.json", "curves.png", "geometry.png", "model/model.safetensors", "model/model.json"):
        say(f"  {comparison.folder / name}")
    say(f"Next: fednc predict {comparison.folder} IMAGE")
    if json:
        write_json(json, {**comparison.summary, "folder": str(comparison.folder)})
