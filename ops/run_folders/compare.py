"""Several runs side by side: their figures and the keys of their run files that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.ops.run_folders.folder import RunFolder, State, read_run

_UNSET = "(not set)"


def to_compare(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs in these folders.

    Raises:
        DataError: one is not a run, cannot be read or has no evaluated round, or their metrics differ.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise DataError("give two or more different run folders; `fednc runs FOLDER` lists them")
    runs = [_usable(path) for path in paths]
    metrics = {run.history.primary.name for run in runs}
    if len(metrics) > 1:
        raise DataError(
            f"these runs are judged by different metrics ({', '.join(sorted(metrics))}): compare runs of one"
        )
    return runs


def _usable(path: Path) -> RunFolder:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; `fednc runs FOLDER` lists the runs in a folder")
    run = read_run(path)
    if run.state is State.DAMAGED:
        raise DataError(f"{path}: cannot be read ({run.problem})")
    if not run.history.curve:
        raise DataError(f"{path}: it has no evaluated round, so there is nothing to compare; is it a run folder?")
    return run


def labels(runs: Sequence[RunFolder]) -> list[str]:
    """A name for each run: the end of its path, with as many folders as tell them apart."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-length:]) for each in parts]
        if len(set(found)) == len(found):
            return found
    return [str(run.path) for run in runs]


def differing_keys(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Each key of the run file that is not the same in all runs, with its value in each of them."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {key: [each.get(key, _UNSET) for each in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
