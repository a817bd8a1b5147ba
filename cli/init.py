"""`fednc init`: a run file to start from, with every key, its default and what it means as comments.

The text is made from the configuration model itself, so it cannot fall behind it. Decides only which few keys
a beginner sees set for each kind of data.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from fednc.cli.output import say
from fednc.common.config import parse_run
from fednc.common.errors import ConfigError
from fednc.common.sections import MethodSection, TaskSection

Table = Mapping[str, Any]

_COMMENT_AT, _COMMENT_WIDTH = 34, 76  # characters


class Kind(StrEnum):
    """What the data is."""

    digits = "digits"
    npz = "npz"
    folder = "folder"


_SPECS = {Kind.digits: "digits", Kind.npz: "npz:PATH", Kind.folder: "folder:PATH"}
_PLACEHOLDERS: Table = {"classes": ["first class", "second class"], "size": 32, "channels": 3}

_OPENING = """\
# A run of fednc. This file decides everything about the run; clients bring their data and their device.
#   fednc server {path}
#   fednc client --server HOST:PORT --data SPEC
# A key that begins with `# ` has the value it would have anyway; take the `# ` away to change it.
"""


def command(
    kind: Annotated[Kind, typer.Argument(help="Where the training images come from.")] = Kind.digits,
    data: Annotated[
        str, typer.Option(help="Data to read class names and image size from, e.g. npz:images.npz.")
    ] = "",
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("run.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a commented run file to start from."""
    values = _values(kind, data)
    text = run_file(values, output)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise ConfigError(
            f"{output} is there already: name another file with --output, or replace it with --force"
        ) from e
    except OSError as e:
        raise ConfigError(f"{output}: cannot be written ({e.strerror}); name another file with --output") from e
    if values["task"]["classes"] is _PLACEHOLDERS["classes"]:
        say(f"{output}: put your own class names into task.classes, and the images' size and channels below")
    say(f"wrote {output}; next: fednc check {output}, then fednc server {output}")


def _values(kind: Kind, data: str) -> Table:
    from fednc.common.tasks import task_class

    default = task_class(TaskSection().name)
    spec = data or ("digits" if kind is Kind.digits else "")
    if spec and spec.partition(":")[0] != kind.value:
        raise ConfigError(
            f"--data {data}: is no {kind.value} data; give `fednc init {kind.value} --data {_SPECS[kind]}`"
        )
    task = {"name": default.name, **(default.suggest_options(spec) if spec else _PLACEHOLDERS)}
    values: dict[str, Any] = {
        "name": kind.value,
        "task": task,
        "method": {"name": "fednc"},
        "train": {"batch": 32 if kind is Kind.digits else 64, "lr": 0.03},
        "rounds": {"total": 20, "min_clients": 2},
    }
    if kind is Kind.digits:
        values |= {"split": {"kind": "dirichlet", "parts": 2, "alpha": 0.1}, "evaluate": {"test": spec}}
    return values


def run_file(values: Table, path: Path) -> str:
    """TOML with `values` set and every other key of the run file as a comment with its default."""
    from fednc.cli.config_docs import sections
    from fednc.common.tasks import task_class

    run = parse_run(dict(values))
    parts = [_OPENING.format(path=path)]
    for name, model in sections():
        given = _at(values, name)
        optional = given is None and _at(run.model_dump(), name) is None
        options = task_class(run.task.name).Options if model is TaskSection else None
        head = f"{'# ' if optional else ''}[{name}]\n" if name else ""
        parts.append(head + "".join(_lines(model, given or {}, options)))
    return "\n".join(parts)


def _lines(model: type[BaseModel], given: Table, options: type[BaseModel] | None) -> Iterator[str]:
    """The keys of one table, each under what it means."""
    from fednc.cli.config_docs import keys, summary

    yield f"# {summary(options or model)}\n"
    # a method's name decides the defaults of its other keys
    preset = MethodSection(**given).model_dump() if model is MethodSection else {}
    for key, schema in {**keys(model), **(keys(options) if options else {})}.items():
        value = given[key] if key in given else preset.get(key, schema.get("default"))
        setting = f"{'' if key in given else '# '}{key} = {json.dumps(value, ensure_ascii=False)}"
        if len(setting) > _COMMENT_AT:
            yield f"{setting}\n"
            setting = ""
        for line in textwrap.wrap(schema["description"], _COMMENT_WIDTH):
            yield f"{setting:<{_COMMENT_AT}}  # {line}\n"
            setting = ""


def _at(values: Table, dotted: str) -> Table | None:
    """The table at a dotted name; None where there is none."""
    found: Any = values
    for key in filter(None, dotted.split(".")):
        found = (found or {}).get(key)
    return found  # type: ignore[no-any-return]
