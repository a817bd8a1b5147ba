"""`fednc export`: the model of a finished run for use elsewhere, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednc.cli.options import Json
from fednc.cli.output import say, working, write_json
from fednc.common.errors import ConfigError


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, runs/<id>.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx, for onnxruntime and other engines; extra `export`.")
    ] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="Write model.pt2, for torch.export.load.")
    ] = False,
    safetensors: Annotated[
        bool,
        typer.Option("--safetensors", help="Write weights.safetensors and weights.json, which describes them."),
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write only the model card, card.md. Every export writes it too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; default: RUN/export.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC", help="Data with an example, for a task that does not tell the shape of its inputs."
        ),
    ] = "",
    client_names: Annotated[
        bool, typer.Option("--client-names", help="Name the clients on the card. Default: they are numbered.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    json: Json = "",
) -> None:
    """Export the model of a finished run: ONNX, torch.export, safetensors, a model card.

    ONNX and torch.export files hold the whole graph: normalisation, model, read-out and probabilities, for batches
    of any size. Resizing images stays outside; the card says to which size. Each graph is run once and must give
    the scores of the model to 1e-4, otherwise nothing is written.

    Example: fednc export runs/digits-20260101-120000 --onnx
    """
    if not (onnx or torch_export or safetensors or card):
        raise ConfigError("nothing to export: give --onnx, --torch-export, --safetensors or --card")
    from fednc.ops.export.writer import Wanted, write

    wanted = Wanted(
        onnx=onnx,
        torch_export=torch_export,
        safetensors=safetensors,
        data=data,
        client_names=client_names,
        force=force,
    )
    with working("loading the model") as tell:
        written = write(run_folder, output or run_folder / "export", wanted, lambda name: tell(f"making {name}"))
    for path in written:
        say(f"wrote {path}")
    if json:
        write_json(json, {"run": str(run_folder), "files": [str(path) for path in written]})
