"""`fednc predict`: what the model of a finished run predicts, and how good that is if labels are known.

Uses the exported model alone, with the run's own evaluation batch size and read-out, so that on the run's test
data it repeats the run's metrics.
"""

from __future__ import annotations

import math
from csv import writer
from dataclasses import dataclass, field, replace
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
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Write the files that the task makes of its predictions to DIR.")
    ] = "",
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table with a row per example: prediction, and probabilities."),
    ] = None,
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
    found = _predictions(model, data, Path(out) if out else None)
    predictions = found.rows
    _show_predictions(predictions)
    result = {
        "run": model.run.name,
        "input": inputs,
        "examples": data.examples,
        "predictions": _finite(predictions),
    }
    known = data.of_classes(0, len(model.class_names)) if model.task.takes_sessions else data
    metrics = _metrics(model, known) if known.count_K.sum() > 0 or not model.class_names else {}
    if any(not math.isnan(metrics[metric.name]) for metric in model.task.measured_by if metrics):
        result["metrics"] = {name: value for name, value in metrics.items() if math.isfinite(value)}
        _show_metrics(model, known, metrics)
    if out:
        say(
            f"{found.files} files in {out}"
            if found.files
            else f"task {model.task.name!r} makes no files of its predictions"
        )
    if csv:
        _write_csv(csv, model, found)
        say(f"wrote {csv}: {len(predictions):,} rows")
    if json:
        write_json(json, result)


@dataclass
class Predicted:
    """A row for each example, the probability of each class where an example has one class, and files written."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    files: int = 0


def _predictions(model: ExportedModel, data: TaskData, out: Path | None) -> Predicted:
    """Predict on all examples, in their order; writes the task's files of them to `out`."""
    from fednc.common.files import write_atomically
    from fednc.common.tasks.evaluation import display_batches
    from fednc.common.tasks.file_names import file_stems

    names = list(data.names or [str(number) for number in range(data.examples)])
    stems = file_stems(names)
    found = Predicted()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with progress("examples", quiet_s=1.0) as show:
        for batch in display_batches(model, data, model.run.evaluate.batch):
            output, first = model.task.displayed(model, batch), len(found.rows)
            described = model.task.described(output)
            here, files_of = names[first:], stems[first : first + len(described)]
            found.rows += [{"name": name, **row} for name, row in zip(here, described, strict=False)]
            if model.class_names and output.ndim == 2:
                found.shares += model.probabilities(output).tolist()
            files = model.task.prediction_files(batch, output, files_of) if out is not None else {}
            for name, content in files.items():
                assert out is not None
                write_atomically(out / Path(name).name, content)
                found.files += 1
            show(len(found.rows) / data.examples)
    return found


def _shown(key: str, value: Any) -> Any:
    return f"{value:.1%}" if key == "confidence" else value


def _write_csv(path: Path, model: ExportedModel, found: Predicted) -> None:
    """The predictions with the probability of each class; numbers beyond classes as they are."""
    head = list(found.rows[0]) + [f"probability of {name}" for name in model.class_names if found.shares]
    shares = found.shares or [[]] * len(found.rows)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = writer(file)
            rows.writerow(head)
            rows.writerows([*row.values(), *share] for row, share in zip(found.rows, shares, strict=True))
    except OSError as e:
        raise DataError(f"{path}: cannot be written ({e.strerror}); name another file with --csv") from e


def _finite(value: Any) -> Any:
    """`value` with null for numbers that JSON cannot hold: a regression may give infinity."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(model: ExportedModel, data: TaskData) -> dict[str, float]:
    """The task's metrics, from the same sums over the same batches as in the run.

    A run measures before its temperature is fitted, so metrics that depend on it are those of temperature 1.
    """
    from fednc.common.tasks.evaluation import evaluate

    guide = replace(model.guide, temperature=1.0)
    stats = evaluate(model.task, model.model, data, guide, model.run.evaluate.batch)
    return model.task.measure(stats)


def _show_predictions(predictions: list[dict[str, Any]]) -> None:
    keys = [key for key in predictions[0] if key != "name"]
    rows = [[row["name"], *(_shown(key, row[key]) for key in keys)] for row in predictions[:SHOWN]]
    show_table("predictions", ["example", *keys], rows)
    if len(predictions) > SHOWN:
        say(f"... and {len(predictions) - SHOWN:,} more of {len(predictions):,}; --json PATH writes them all")


def _show_metrics(model: ExportedModel, data: TaskData, metrics: dict[str, float]) -> None:
    (what, count_K), primary = next(iter(data.counts.items())), model.task.primary
    counts = count_K.tolist()
    rows = [
        [name, counts[place], primary.show(metrics[f"{primary.name}/{name}"], 2)]
        for place, name in enumerate(model.class_names)
        if f"{primary.name}/{name}" in metrics
    ]
    if rows:
        show_table(f"{primary.name} of each class", ["class", what, primary.name], rows)
    found = {metric.name: metrics[metric.name] for metric in model.task.measured_by}
    values = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if not math.isnan(value))
    say(f"{values} on {int(metrics['examples']):,} labelled examples")
