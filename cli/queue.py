"""`fednc queue`: the test examples that a run's model is least sure of, and the labels that a person gives
them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fednc.cli.options import Device, Json
from fednc.cli.output import progress, say, show_table, working, write_json
from fednc.common.errors import ConfigError

SHOWN = 20  # rows printed


def command(
    run_folder: Annotated[Path, typer.Argument(metavar="runs/<id>", help="Folder of a finished run.")],
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="Other data than the run's own test data (evaluate.test).")
    ] = "",
    most: Annotated[int, typer.Option(min=1, help="Length of the queue.")] = 50,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write. Default: the folder `queue` of the run.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Take labels from the columns index and label, and write labelled.npz."
        ),
    ] = None,
    device: Device = "cpu",
    json: Json = "",
) -> None:
    """List the examples with the smallest margin, and write them as a table, an .npz file and pictures.

    The margin is the probability of the best class minus that of the second. Fill the column `label` of queue.csv
    and run the command again with --labels to get a data file with these examples and your labels.
    """
    from fednc.common.device import pick_device
    from fednc.common.model_export import load
    from fednc.ops.review import queue

    chosen = pick_device(device)
    with working(f"loading the model of {run_folder}"):
        model = load(run_folder).to(chosen)
        spec = data or model.run.evaluate.test
        if not spec:
            raise ConfigError(
                f"{run_folder}: the run has no test data (evaluate.test); name some with --data SPEC"
            )
        examples = model.task.load_test(spec).to(chosen)
    place = out or run_folder / "queue"
    if labels is not None:
        given = queue.read_labels(labels, model.class_names, examples.examples)
        written = queue.write_labelled(place, model, examples, given)
        say(f"{len(given)} labelled examples: {written}")
        if json:
            write_json(json, {"spec": written, "examples": len(given)})
        return
    done = 0
    with progress("examples", quiet_s=1.0) as show:

        def tell() -> None:
            nonlocal done
            show(min(1.0, done / max(1, examples.examples)))
            done += model.run.evaluate.batch

        found = queue.least_sure(model, examples, most, tell)
    queue.write_queue(place, found)
    pictures = queue.write_pictures(place, model, examples, found)
    columns = ["index", "name", "margin", "predicted", "second", "confidence"]
    show_table(f"least sure of {spec}", columns, [list(asdict(each).values()) for each in found[:SHOWN]])
    if len(found) > SHOWN:
        say(f"... and {len(found) - SHOWN} more")
    say(f"wrote {place / queue.TABLE}, {queue.ARRAYS} and {pictures} pictures")
    if json:
        write_json(json, {"data": spec, "queue": [asdict(each) for each in found]})
