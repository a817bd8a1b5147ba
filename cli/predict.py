"""`fednc predict`: what the model of a finished run predicts, and how good that is if labels are known.

Uses the exported model alone, with the run's own evaluation batch size and read-out, so that on the run's test
data it repeats the run's metrics.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import progress, say, show_table, working, write_json
from fednc.common.errors import DataError

if TYPE_CHECKING:
    from fednc.common.model_export import ExportedModel
    from fednc.common.tasks.api import TaskData

SHOWN = 20  # predictions printed; --json has them all


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="runs/<id>", help="Folder of a finished run.")],
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="What the run's task reads: a data spec; for images also a file or a folder."
        ),
    ],
    device: Device = "cpu",
    json: Json = "",
) -> None:
    """Predict with the model of a finished run."""
    from fednc.common.device import pick_device
    from fednc.common.model_export import load

    chosen = pick_device(device)
    with working(f"loading the model and {inputs}"):
        model = load(run_folder).to(chosen)
        data = model.task.load_input(inputs).to(chosen)
    for note in data.notes:
        say(f"{inputs}: {note}", style="yellow")
    if not data.examples:
        raise DataError(f"{inputs}: it contains no examples, so there is nothing to predict")
    predictions = _predictions(model, data)
    _show_predictions(predictions)
    result = {
        "run": model.run.name,
        "input": inputs,
        "examples": data.examples,
        "predictions": _finite(predictions),
    }
    known = data.of_classes(0, len(model.class_names)) if model.task.takes_sessions else data
    metrics = _metrics(model, known) if known.count_K.sum() > 0 or not model.class_names else {}
    if metrics.get("examples"):
        result["metrics"] = {name: value for name, value in metrics.items() if math.isfinite(value)}
        _show_metrics(model, known, metrics)
    if json:
        write_json(json, result)


def _predictions(model: ExportedModel, data: TaskData) -> list[dict[str, Any]]:
    import torch

    from fednc.common.tasks.evaluation import evaluation_batches

    names = data.names or [str(number) for number in range(data.examples)]
    batches = evaluation_batches(model, data, model.run.evaluate.batch)
    scores = []
    done = 0
    with progress("examples", quiet_s=1.0) as show:
        for batch in batches:
            scores.append(model(model.task.inputs_of(batch)))
            done += model.task.batch_size_of(batch)
            show(done / data.examples)
    if not model.class_names:
        values = torch.cat(scores).float().tolist()
        return [{"name": name, "value": value} for name, value in zip(names, values, strict=True)]
    confidence_N, class_N = model.probabilities(torch.cat(scores)).max(dim=1)
    rows = zip(names, class_N.tolist(), confidence_N.tolist(), strict=True)
    return [
        {"name": name, "class": model.class_names[c], "confidence": confidence} for name, c, confidence in rows
    ]


def _finite(value: Any) -> Any:
    """`value` with null for numbers that JSON cannot hold: a regression may give infinity."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(model: ExportedModel, data: TaskData) -> dict[str, float]:
    """The task's metrics, from the same sums over the same batches as in the run."""
    from fednc.common.tasks.evaluation import evaluate

    stats = evaluate(model.task, model.model, data, model.guide, model.run.evaluate.batch)
    return model.task.measure(stats)


def _show_predictions(predictions: list[dict[str, Any]]) -> None:
    if predictions and "class" not in predictions[0]:
        show_table(
            "predictions", ["example", "value"], [[row["name"], row["value"]] for row in predictions[:SHOWN]]
        )
    else:
        rows = [[row["name"], row["class"], f"{row['confidence']:.1%}"] for row in predictions[:SHOWN]]
        show_table("predictions", ["example", "class", "confidence"], rows)
    if len(predictions) > SHOWN:
        say(f"... and {len(predictions) - SHOWN:,} more of {len(predictions):,}; --json PATH writes them all")


def _show_metrics(model: ExportedModel, data: TaskData, metrics: dict[str, float]) -> None:
    counts, primary = data.count_K.tolist(), model.task.primary
    rows = [
        [name, counts[place], primary.show(metrics[f"{primary.name}/{name}"], 2)]
        for place, name in enumerate(model.class_names)
        if f"{primary.name}/{name}" in metrics
    ]
    if rows:
        show_table(f"{primary.name} of each class", ["class", "examples", primary.name], rows)
    values = ", ".join(f"{metric.name} {metrics[metric.name]:.4f}" for metric in model.task.measured_by)
    say(f"{values} on {int(metrics['examples']):,} labelled examples")
