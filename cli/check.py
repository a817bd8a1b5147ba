"""`fednc check`: whether a run file and data work, as far as that can be told without a server.

Does what server and client would do before round 1, on one machine, and shows the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednc.cli.options import ClassNames, Columns, Json, Partition, parse_partition
from fednc.cli.output import say, show_table, working, write_json
from fednc.common.config.run import read_run_file
from fednc.common.errors import ConfigError, DataError, FedncError
from fednc.common.tasks.data_spec import with_options

if TYPE_CHECKING:
    from fednc.common.tasks.api import Part, Task, TaskData

Found = dict[str, Any]


def command(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="A client's data; repeat it for the data of all sites, to find classes and labels that none has. "
            "Default: read the server's own test data.",
        ),
    ] = None,
    class_names: ClassNames = "",
    columns: Columns = "",
    partition: Partition = "",
    json: Json = "",
    flower: Annotated[
        str, typer.Option(metavar="FILE", help="Write the run for stock Flower to FILE: `flwr run ... -c FILE`.")
    ] = "",
) -> None:
    """Validate a run file and data without a server: decodes every image, shows all errors at once."""
    from fednc.common.tasks import discovery
    from fednc.common.tasks.api import Part

    run = read_run_file(run_file)
    chosen = parse_partition(partition)
    task = discovery.get(run)
    specs = [with_options(one, class_names, columns) for one in data or []]
    if len(specs) > 1 and (partition or flower):
        raise ConfigError("--partition and --flower are for one --data; give it once")
    with working(f"reading {', '.join(specs) or run.evaluate.test or 'the run file'}"):
        found, errors = _collected(
            lambda: _the_run(task),
            lambda: (
                _the_sites(task, specs)
                if len(specs) > 1
                else _the_data(task, specs[0], Part(*chosen) if chosen else None)
                if specs
                else _the_test(task, bool(class_names or columns or partition))
            ),
        )
    if errors:
        raise errors[0] if len(errors) == 1 else type(errors[0])("\n".join(map(str, errors)))
    if json:
        write_json(json, found)
    if flower:
        _write_for_flower(Path(flower), run.model_dump_json(), specs[0] if specs else "")
    described = [*(found[key] for key in ("data", "test") if key in found), *found.get("sites", [])]
    notes = [note for each in described for note in each["notes"]]
    say("no problems found" + (f"; see {len(notes)} notes on the data above" if notes else ""))


def _collected(*checks: Callable[[], Found]) -> tuple[Found, list[FedncError]]:
    """The results of all checks, and all errors: one must not hide the next."""
    found: Found = {}
    errors: list[FedncError] = []
    for check in checks:
        try:
            found |= check()
        except FedncError as e:
            errors.append(e)
    return found, errors


def _the_run(task: Task) -> Found:
    from fednc.common.tasks.probe import candidates, check_candidates

    run = task.run
    found = {"run": run.name, "digest": run.digest, "task": task.name, "method": run.method.name, **_model(task)}
    if run.probe and not run.probe.picked:
        check_candidates(run, task)
        found["candidates"] = [f"{one.pick.family} {one.pick.value:g}" for one in candidates(run)]
    _show_run(found)
    return found


def _the_test(task: Task, has_options: bool) -> Found:
    if has_options:
        raise ConfigError("--class-names, --columns and --partition describe --data: give --data SPEC too")
    spec = task.run.evaluate.test
    if not spec:
        return {}
    test = _described(task, spec, task.load_test(spec))
    _show_columns(test)
    _show_notes(test)
    _show_counts(task, {f"test {spec}": test})
    return {"test": test}


def _write_for_flower(path: Path, run_json: str, data: str) -> None:
    """A run configuration of Flower: strings, written as JSON, which is valid TOML here."""
    from json import dumps

    path.write_text(f"run = {dumps(run_json)}\ndata = {dumps(data)}\n", encoding="utf-8")


def _model(task: Task) -> Found:
    """The model that the run would start with. Draws the frame too, so that an impossible one is an error here."""
    from fednc.common.tasks import initial_weights
    from fednc.common.tasks.blocks import Traffic, top_blocks

    frame, model = task.frame(task.run.seed), task.new_model()
    state = model.state_dict()
    trained = task.trained_keys(model, task.stage(1)) if task.run.train.epochs else []
    traffic = Traffic.of({key: state[key] for key in task.shared_keys(model)}, trained)
    weights = task.run.task.weights
    notes = task.load_weights(model, initial_weights.read(Path(weights))[0]) if weights else ()
    return {
        "classes": list(task.class_names),
        "label_space": frame.vertices,
        "frame_dim": frame.dim,
        "model_parameters": sum(p.numel() for p in model.parameters()),
        "blocks": top_blocks(model, task.body),
        "weights": "; ".join(notes),
        "bytes_once": traffic.once,
        "bytes_each_round": traffic.each_round,
        "input": task.preprocessing(),
    }


def _the_data(task: Task, spec: str, part: Part | None) -> Found:
    """What a client would train on, and with a simulated split how it divides the data."""
    from fednc.common.tasks.api import Part

    split = task.run.split
    whole = _described(task, spec, task.load_train(spec, None, None))
    found: Found = {"data": whole}
    columns = {"all": whole}
    wanted = [part] if part else [Part(i, split.parts) for i in range(split.parts)] if split else []
    parts = [_described(task, spec, task.load_train(spec, each, split)) for each in wanted]
    columns |= {f"part {each.index}/{each.of}": sizes for each, sizes in zip(wanted, parts, strict=True)}
    _show_columns(whole)
    _show_notes(whole)
    _show_counts(task, columns)
    if parts:
        found["parts"] = [{"part": each.index, **sizes} for each, sizes in zip(wanted, parts, strict=True)]
    if parts and not part:
        used = sum(sizes["examples"] for sizes in parts)
        found |= {"used": used, "dropped": whole["examples"] - used}
        say(f"split: {used:,} of {whole['examples']:,} examples used, {found['dropped']:,} dropped")
    return found


def _the_sites(task: Task, specs: Sequence[str]) -> Found:
    """The training data of several sites side by side. Raises DataError: unusable, or names that none has."""
    read, errors = _collected(*(partial(_one_site, task, spec) for spec in specs))
    if errors:
        raise DataError("\n".join(map(str, errors)))
    sites = [read[spec] for spec in specs]
    for number, each in enumerate(sites, start=1):
        say(f"site {number}: {each['spec']}")
        _show_notes(each)
    _show_counts(task, {f"site {number}": each for number, each in enumerate(sites, start=1)})
    problems = list(_nowhere("classes", [each["count"] for each in sites]))
    for kind in sites[0]["labels"]:
        problems += _nowhere(kind, [each["labels"][kind] for each in sites])
    if problems:
        raise DataError("\n".join(problems))
    return {"sites": sites}


def _nowhere(kind: str, counts: Sequence[dict[str, int]]) -> Iterator[str]:
    """What to say of the names of this kind of which no site has an example."""
    missing = [name for name in counts[0] if not any(each[name] for each in counts)]
    if missing:
        listed = ", ".join(map(repr, missing[:20]))
        yield (
            f"no site has an example of {len(missing)} of the run's {kind}: {listed}. They cannot be learnt: take "
            "them out of [task], or add data that has them."
        )


def _one_site(task: Task, spec: str) -> Found:
    data = task.load_train(spec, None, None)
    labels = {kind: dict(counts) for kind, counts in task.label_counts(data).items()}
    return {spec: {**_described(task, spec, data), "labels": labels}}


def _described(task: Task, spec: str, data: TaskData) -> Found:
    counts = {
        title: dict(zip(task.class_names, count_K.tolist(), strict=False))
        for title, count_K in data.counts.items()
    }
    first = next(iter(counts.values()))
    found = {"spec": spec, "examples": data.examples, "count": first, "counts": counts, "notes": list(data.notes)}
    return {**found, "columns": list(map(dict, data.column_report))} if data.column_report else found


def _show_columns(described: Found) -> None:
    """What was found in each column of a table."""
    rows = described.get("columns", [])
    if rows:
        show_table(f"columns of {described['spec']}", list(rows[0]), [list(row.values()) for row in rows])


def _show_notes(described: Found) -> None:
    for note in described["notes"]:
        say(f"{described['spec']}: {note}", style="yellow")


def _show_run(found: Found) -> None:
    rows = [
        ["task", found["task"]],
        ["method", found["method"]],
        *(_class_rows(found) if found["classes"] else []),
        ["model", f"{found['model_parameters']:,} parameters"],
        *([["weights", found["weights"]]] if found["weights"] else []),
        *([["probe", ", ".join(found["candidates"])]] if "candidates" in found else []),
        ["blocks", ", ".join(found["blocks"])],
        ["sent once", f"{found['bytes_once']:,} bytes of model to each client"],
        ["each round", f"{found['bytes_each_round']:,} bytes of model, in each direction and per client"],
        *([f"input {key}", value] for key, value in found["input"].items()),
    ]
    show_table(f"run {found['run']}", ["what", "found"], rows)


def _class_rows(found: Found) -> list[list[Any]]:
    return [
        ["classes", len(found["classes"])],
        ["frame", f"{found['label_space']} vertices in {found['frame_dim']} dimensions"],
    ]


def _show_counts(task: Task, columns: dict[str, Found]) -> None:
    """A table: a row for each class, a column for each data and each count of it."""
    found = [(name, title, each) for name, each in columns.items() for title in each["counts"]]
    heads = [name if title == "examples" else f"{name}: {title}" for name, title, _ in found]
    rows: list[list[object]] = [
        [name, *(each["counts"][title][name] for _, title, each in found)] for name in task.class_names
    ]
    rows.append(["total", *(each["examples"] for _, _, each in found)])
    title, first = ("examples of each class", "class") if task.class_names else ("examples", "")
    show_table(title, [first, *heads], rows)
