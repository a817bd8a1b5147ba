"""`fednc inspect`: what happens inside a model on some data. So far: `gradients`, of attention blocks.

Runs on one machine, without a server, and changes no run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import say, show_table, working, write_json
from fednc.common.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from fednc.common.learning.attention_branches import BranchCosines
    from fednc.common.tasks.api import Task

app = typer.Typer(no_args_is_help=True, help="Look inside a model: `gradients` of its attention blocks.")


@app.callback()
def _group() -> None:
    """Look inside a model."""


@app.command()
def gradients(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN.toml|runs/<id>", help="A run file, for its first model, or a finished run."),
    ],
    data: Annotated[str, typer.Option(metavar="SPEC", help="Training data, as a client gives it.")],
    steps: Annotated[
        int, typer.Option(min=0, help="Train a copy on the data for as many steps first, as a client trains.")
    ] = 0,
    batches: Annotated[int, typer.Option(min=1, help="Measure over so many training batches.")] = 4,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a PNG with a histogram of each branch.")
    ] = None,
    device: Device = "cpu",
    json: Json = "",
) -> None:
    """Show whether the branches of each attention block pull the same way.

    An input of an attention block reaches the loss in several ways, for example as keys and as values. For each of
    these branches: the share of its gradient in all of them, its cosine with their sum (per token, and per example
    as a whole), and how many tokens are pulled against what the other branches want.
    """
    from fednc.client.training.gradient_report import branch_gradients, trained_for
    from fednc.common.device import pick_device
    from fednc.common.tasks.round_guide import first_guide

    chosen = pick_device(device)
    with working(f"reading {source} and {data}"):
        task, model = _model_of(source)
        examples = task.load_train(data, None, task.run.split).to(chosen)
        guide = first_guide(task, examples.count_K).to(chosen)
    with working(f"training a copy for {steps} steps" if steps else "measuring"):
        model = trained_for(task, model.to(chosen), examples, guide, steps)
        found = branch_gradients(task, model, examples, guide, batches)
    _show(found)
    if picture is not None:
        _write(picture, found)
    if json:
        write_json(json, {"run": task.run.name, "data": data, "steps": steps, "branches": _plain(found)})


def _model_of(source: Path) -> tuple[Task, nn.Module]:
    """(task, model): as drawn for a run file; with the final weights for a finished run.

    What stays on the clients, such as an adversary, is as a client starts with it.
    """
    import torch

    from fednc.common import seeds
    from fednc.common.config.run import read_run_file
    from fednc.common.model_export import load
    from fednc.common.tasks import discovery

    trained = load(source) if source.is_dir() else None
    task = trained.task if trained else discovery.get(read_run_file(source))
    torch.manual_seed(seeds.derive(task.run.seed, "model"))
    model = task.new_model()
    if trained:
        model.load_state_dict(trained.model.state_dict(), strict=False)
    return task, model


def _show(found: list[BranchCosines]) -> None:
    rows: list[list[Any]] = []
    for branch in found:
        told = branch.summary()
        values = ["no gradient", "", "", ""] if branch.is_cut else _cells(told)
        rows.append([told["block"], told["input"], told["branch"], *values])
    show_table(
        "gradient of each branch, compared with the gradient of the whole input",
        ["block", "input", "branch", "share", "cosine per token", "per example", "tokens against the others"],
        rows,
    )
    say("cosine 1: the branch alone moves the input as all do; below 0: it works against the others")


def _cells(told: dict[str, Any]) -> list[str]:
    against = "-" if math.isnan(told["against"]) else f"{told['against']:.0%}"
    return [f"{told['share']:.0%}", f"{told['token']:.2f}", f"{told['instance']:.2f}", against]


def _plain(found: list[BranchCosines]) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in told.items()}
        for told in (branch.summary() for branch in found)
    ]


def _write(path: Path, found: list[BranchCosines]) -> None:
    from fednc.bench.branch_picture import branch_picture

    try:
        path.write_bytes(branch_picture(found))
    except OSError as e:
        raise DataError(f"{path}: cannot be written ({e.strerror}); name another file with --picture") from e
    say(f"wrote {path}")
