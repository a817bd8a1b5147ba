"""`fednc predict`: what the model of a finished run says about images, and how right it is where labels are known.

Uses the exported model alone, with the run's own evaluation batch size and read-out, so that on the run's test
data it repeats the run's accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import say, show_table, write_json

if TYPE_CHECKING:
    from fednc.common.model_export import ExportedModel
    from fednc.common.tasks.api import TaskData

SHOWN = 20  # predictions printed; --json has them all
PER_CLASS = "accuracy/"  # prefix of the metrics of single classes


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="runs/<id>", help="Folder of a finished run.")],
    inputs: Annotated[str, typer.Argument(metavar="IMAGE|FOLDER|NPZ", help="A path, or a data spec's test part.")],
    device: Device = "cpu",
    json: Json = "",
) -> None:
    """Classify images with the model of a finished run."""
    from fednc.common.device import pick_device
    from fednc.common.model_export import load

    chosen = pick_device(device)
    model = load(run_folder).to(chosen)
    data = model.task.load_input(inputs).to(chosen)
    for note in data.notes:
        say(f"{inputs}: {note}", style="yellow")
    predictions = _predictions(model, data)
    _show_predictions(predictions)
    result = {"run": model.run.name, "input": inputs, "examples": data.examples, "predictions": predictions}
    known = data.of_classes(0, len(model.class_names)) if model.task.takes_sessions else data
    if known.count_K.sum() > 0:
        metrics = _metrics(model, known)
        result["metrics"] = metrics
        _show_metrics(model, known, metrics)
    if json:
        write_json(json, result)


def _predictions(model: ExportedModel, data: TaskData) -> list[dict[str, Any]]:
    import torch

    names = data.names or [str(number) for number in range(data.examples)]
    with torch.no_grad():
        scores = [model(model.task.inputs_of(batch)) for batch in data.eval_batches(model.run.evaluate.batch)]
    confidence_N, class_N = torch.cat(scores).float().softmax(dim=1).max(dim=1)
    rows = zip(names, class_N.tolist(), confidence_N.tolist(), strict=True)
    return [
        {"name": name, "class": model.class_names[c], "confidence": confidence} for name, c, confidence in rows
    ]


def _metrics(model: ExportedModel, data: TaskData) -> dict[str, float]:
    """The task's own metrics, from the same sums over the same batches as in the run."""
    import torch

    from fednc.common.tasks.api import add_stats
    from fednc.common.tasks.metrics import Stats

    stats: Stats = {}
    with torch.no_grad():
        for batch in data.eval_batches(model.run.evaluate.batch):
            add_stats(stats, model.task.statistics(model.model, batch, model.guide))
    return model.task.measure(stats)


def _show_predictions(predictions: list[dict[str, Any]]) -> None:
    rows = [[row["name"], row["class"], f"{row['confidence']:.1%}"] for row in predictions[:SHOWN]]
    show_table("predictions", ["example", "class", "confidence"], rows)
    if len(predictions) > SHOWN:
        say(f"... and {len(predictions) - SHOWN:,} more of {len(predictions):,}; --json PATH writes them all")


def _show_metrics(model: ExportedModel, data: TaskData, metrics: dict[str, float]) -> None:
    counts = data.count_K.tolist()
    rows = [
        [name, counts[place], f"{metrics[PER_CLASS + name]:.2%}"]
        for place, name in enumerate(model.class_names)
        if PER_CLASS + name in metrics
    ]
    show_table("accuracy of each class", ["class", "examples", "accuracy"], rows)
    say(f"accuracy {metrics['accuracy']:.4f} on {int(metrics['examples']):,} labelled examples")
