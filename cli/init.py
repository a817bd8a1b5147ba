"""`fednc init`: a run file to start from, with every key, its default and its meaning in comments.

The text is made from the configuration model, so it is always up to date. Decides only which few keys are set for
each kind of data.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from fednc.cli.options import ClassNames
from fednc.cli.output import say, working
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.config.tables import FrameSection, MethodSection, TaskSection
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.tasks.data_spec import with_options
from fednc.common.toml_text import value_text

if TYPE_CHECKING:
    from fednc.common.tasks.api import Suggestion, Task

Table = Mapping[str, Any]

_TABLES = ("csv", "parquet")  # kinds of data with named columns; a bare path is enough for them
_COMMENT_AT, _COMMENT_WIDTH = 34, 76  # characters
_DIGITS = "digits"  # the only kind of data that is not at a path
_PLACEHOLDERS: Table = {"classes": ["first class", "second class"], "size": 32, "channels": 3}

_OPENING = """\
# A run of fednc. This file decides everything about the run; clients bring their data and their device.
#   fednc server {path}
#   fednc client --server HOST:PORT --data SPEC
{measured}# Keys behind `# ` show their defaults; remove the `# ` to change one.
"""


_MEASURED = """\
# task.mean and task.std were measured on one site's images; every client normalises its images with them.
# If sites differ a lot, agree on values, or leave both out (0.5).
"""


def command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="What the data is: digits, npz or folder of images; csv or parquet."),
    ] = _DIGITS,
    data: Annotated[
        str,
        typer.Option(help="Data to read class names, columns or sizes from, e.g. npz:images.npz or clinic.csv."),
    ] = "",
    class_names: ClassNames = "",
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Of a table: the column to predict.")] = "",
    regression: Annotated[
        bool, typer.Option("--regression", help="Of a table: predict the target as a number.")
    ] = False,
    ignore: Annotated[str, typer.Option(metavar="A,B,C", help="Of a table: columns that are no inputs.")] = "",
    list_categories: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="Of a table: columns whose categories are written into the run file, which every site can read.",
        ),
    ] = "",
    id_column: Annotated[
        str, typer.Option("--id", metavar="COLUMN", help="Of a table: the column that names the rows.")
    ] = "",
    task_name: Annotated[
        str,
        typer.Option(
            "--task", metavar="NAME", help="The task, if it is not the usual one for this kind of data: signal."
        ),
    ] = "",
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("run.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented run file to start from."""
    task = _task_for(kind, task_name)
    spec = data or (_DIGITS if kind == _DIGITS else "")
    wishes = {
        "target": target,
        "kind": "regression" if regression else "",
        "ignore": _names(ignore),
        "list_categories": _names(list_categories),
        "id": id_column,
    }
    if kind in _TABLES:
        wishes["classes"] = _names(class_names)
        spec = spec if not spec or spec.startswith(f"{kind}:") else f"{kind}:{spec}"
    elif spec:
        spec = with_options(spec, class_names)
    with working(f"reading {spec}" if spec else "preparing the run file"):
        values, found = _values(kind, task, spec, {key: value for key, value in wishes.items() if value})
    text = run_file(values, output, measured=found.measured)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise ConfigError(
            f"{output} exists already: name another file with --output, or replace it with --force"
        ) from e
    except OSError as e:
        raise ConfigError(f"{output}: cannot be written ({e.strerror}); name another file with --output") from e
    if not spec:
        say(f"{output}: set task.classes to your class names, and the images' size and channels below it")
    for note in found.notes:
        say(f"{spec}: {note}", style="yellow")
    if found.measured:
        say(
            "task.mean and task.std were measured on this site's images, and every client will use them: agree on "
            "them with the other sites, or leave both out (0.5)"
        )
    data_option = f" --data {spec}" if spec and spec != _DIGITS else ""
    say(f"wrote {output}; next: fednc check {output}{data_option}, then fednc server {output}")
    if kind in _TABLES:
        say(f"and at each site: fednc client --server HOST:PORT --data {kind}:PATH (docs/tabular.md)")


def _names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _task_for(kind: str, name: str) -> type[Task]:
    """The named task, or the one whose usual data this is. Raises ConfigError if there is none, or several."""
    from fednc.common.tasks.discovery import installed, task_class

    if name:
        return task_class(name)  # it says itself what it cannot read
    tasks = list(installed().values())
    able = [task for task in tasks if kind in task.sources]
    if len(able) == 1:
        return able[0]
    if able:
        choices = " or ".join(f"--task {task.name}" for task in able)
        raise ConfigError(f"fednc init {kind}: several tasks can use such data; choose {choices}")
    kinds = sorted({source for task in tasks for source in task.sources})
    raise ConfigError(f"fednc init {kind}: expected one of {', '.join(kinds) or '(no kind of data)'}")


def _values(kind: str, chosen: type[Task], spec: str, wishes: Table) -> tuple[Table, Suggestion]:
    from fednc.common.tasks.api import Suggestion
    from fednc.common.tasks.discovery import get

    if spec and spec.partition("?")[0].partition(":")[0] != kind:
        usual = kind if kind == _DIGITS else f"{kind}:PATH"
        raise ConfigError(f"--data {spec} is not {kind} data: use `fednc init {kind} --data {usual}`")
    if not spec and (kind in _TABLES or wishes):
        raise ConfigError(f"fednc init {kind}: give a table to read the columns from: --data {kind}:PATH")
    found = chosen.suggest_with(spec, wishes) if spec else Suggestion(dict(_PLACEHOLDERS))
    task = {"name": chosen.name, **found.options}
    values: dict[str, Any] = {
        "name": kind,
        "task": task,
        "method": {"name": "fednc"},
        "train": {"batch": 32 if kind == _DIGITS else 64, "lr": 0.03},
        "rounds": {"total": 20, "min_clients": 2},
        **found.tables,
    }
    if kind == _DIGITS:
        values |= {"split": {"kind": "dirichlet", "parts": 2, "alpha": 0.1}, "evaluate": {"test": spec}}
    needed = len(task.get("classes", ())) - 1
    if needed > values.get("frame", {}).get("dim", FrameSection().dim):
        values["frame"] = {"dim": 1 << (needed - 1).bit_length()}
        note = f"frame.dim = {values['frame']['dim']}: {needed + 1} classes need at least {needed} dimensions"
        found = replace(found, notes=(*found.notes, note))
    try:
        get(parse_run(dict(values)))  # make sure that the file can be read
    except ConfigError as e:
        if spec:
            raise
        raise ConfigError(
            f"fednc init {kind}: a run file for task {chosen.name!r} needs data to read its keys from: "
            f"--data {kind}:PATH"
        ) from e
    return values, found


def run_file(values: Table, path: Path, *, measured: bool = False) -> str:
    """TOML that sets `values`, with every other key of the run file as a comment with its default."""
    from fednc.cli.config_docs import sections
    from fednc.common.tasks.discovery import task_class

    run = parse_run(dict(values))
    parts = [_OPENING.format(path=path, measured=_MEASURED if measured else "")]
    task = task_class(run.task.name)
    for name, model in sections(splits=[task.Split]):
        given = _at(values, name)
        optional = given is None and _at(run.model_dump(), name) is None
        options = _options_of(run, model, task)
        head = f"{'# ' if optional else ''}[{name}]\n" if name else ""
        parts.append(head + "".join(_lines(model, given or {}, options)))
    return "\n".join(parts)


def _options_of(run: RunConfig, model: type[BaseModel], task: type[Task]) -> list[type[BaseModel]]:
    """What describes keys of a table beyond those that it always has: those of the task, and of methods."""
    if model is TaskSection:
        return [task.Options]
    if model is MethodSection:
        return [registry.get(name).Options for name in dict.fromkeys([*registry.MIXING, run.method.name])]
    return []


def _lines(model: type[BaseModel], given: Table, options: list[type[BaseModel]]) -> Iterator[str]:
    """The keys of one table, each with its meaning."""
    from fednc.cli.config_docs import keys, summary

    yield f"# {summary(options[0] if model is TaskSection else model)}\n"
    # a method's name decides the defaults of its other keys
    preset = MethodSection(**given).model_dump() if model is MethodSection else {}
    described = [schemas for table in (model, *options) for schemas in keys(table).items()]
    for key, schema in described:
        value = given[key] if key in given else preset.get(key, schema.get("default"))
        setting = f"{'' if key in given else '# '}{key} = {value_text(value)}"
        if len(setting) > _COMMENT_AT:
            yield f"{setting}\n"
            setting = ""
        for line in textwrap.wrap(schema["description"], _COMMENT_WIDTH):
            yield f"{setting:<{_COMMENT_AT}}  # {line}\n"
            setting = ""


def _at(values: Table, dotted: str) -> Table | None:
    """The table with a dotted name; None if there is none."""
    found: Any = values
    for key in filter(None, dotted.split(".")):
        found = (found or {}).get(key)
    return found  # type: ignore[no-any-return]
