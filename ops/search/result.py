"""The run file of a trial, to run it in full."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.ops.search.plan import SearchPlan, run_file_of
from fednc.ops.search.space import Values, put, without_unset
from fednc.ops.search.study import TrialView


def write_run_file(plan: SearchPlan, trial: TrialView, path: Path) -> None:
    """Write the run file that the search names, with the trial's settings. `[set]` holds for trials only.

    Raises:
        ConfigError: the settings fit the trials, but not the run file without `[set]`.
    """
    values = without_unset(run_file_of(plan), plan.space, trial.settings)
    for key, value in trial.settings.items():
        put(values, key, value)
    plan.space.apply(values, trial.settings, source=f"the run file with the settings of trial {trial.number}")
    heading = f"# {Path(plan.file.run).name} with the settings of trial {trial.number} of search {plan.name}\n"
    try:
        write_atomically(path, (heading + to_toml(values)).encode(), mode=0o644)
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror}") from e


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML: what `tomllib` reads back."""
    lines: list[str] = []
    _write(lines, values, "")
    return "\n".join(lines).strip() + "\n"


def _write(lines: list[str], table: Mapping[str, Any], prefix: str) -> None:
    for key, value in table.items():
        if not _is_table(value) and not _is_tables(value):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in table.items():
        name = f"{prefix}{_key(key)}"
        if _is_table(value):
            lines += ["", f"[{name}]"]
            _write(lines, value, f"{name}.")
        elif _is_tables(value):
            for one in value:
                lines += ["", f"[[{name}]]"]
                _write(lines, one, f"{name}.")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        inner: Values = dict(value)
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in inner.items()) + " }"
    return str(value)  # a date or time


def _text(text: str) -> str:
    """A basic string: TOML has the escapes of JSON, and does not allow DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
