"""The data of a comparison as two .npz files: one for tuning, one for results. Tuning never sees the test part.

Called once by `engine.py`; rows read the files. They are in the folder of results, where git ignores them.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np

from fednc.bench.compare.plan import Comparison
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task, TaskData

_SUBSET_SEED = 0  # which examples of a larger data set: the same for every comparison


@dataclass(frozen=True)
class Prepared:
    """A file of arrays for training and testing, and the sha256 of its arrays."""

    path: Path
    sha256: str


def prepare(plan: Comparison, places: dict[str, str], folder: Path) -> tuple[Prepared, Prepared]:
    """Write two files: for tuning, the training part split into training and validation; for results, all of it.

    Args:
        places: paths by name, for `data.source`.
        folder: where the files go; each is named by its digest.

    Raises:
        ConfigError: `data.source` needs a path that is not in `places`.
        DataError: the data are missing, unreadable or not usable.
    """
    # Unsplit and unshifted: each row splits and shifts its own data.
    # With the method of a variant: not every task works with the default one.
    method = {**plan.run.get("method", {}), **plan.variants[0].method}
    run = parse_run({**plan.run, "method": method}, source=plan.name)
    task = discovery.get(run.model_copy(update={"split": None}))
    spec = _spec(plan.data.source, places)
    train = _subset(task.load_train(spec, None, None), plan.data.train_examples, f"{spec}: training")
    test = _subset(task.load_test(spec), plan.data.test_examples, f"{spec}: test")
    rest, held = train.hold_out(plan.tuning.val_share, plan.tuning.seed)
    return _write(task, rest, held, folder), _write(task, train, test, folder)


def _spec(source: str, places: dict[str, str]) -> str:
    named = {name for _, name, _, _ in Formatter().parse(source) if name}
    if unused := sorted(set(places) - named):
        raise ConfigError(
            f"--data {unused[0]}=...: data.source is {source!r} and names no {{{unused[0]}}}; "
            f"write the place of the path into it, e.g. source = 'npz:{{{unused[0]}}}'"
        )
    try:
        return source.format_map(places)
    except KeyError as e:
        raise ConfigError(f"data.source {source!r} needs a path: add --data {e.args[0]}=PATH") from e


def _subset(data: TaskData, wanted: int, what: str) -> TaskData:
    if wanted > data.examples:
        raise ConfigError(f"{what} part has {data.examples} examples, but the comparison asks for {wanted}")
    if wanted in (0, data.examples):
        return data
    return data.hold_out(wanted / data.examples, _SUBSET_SEED)[1]


def _write(task: Task, train: TaskData, test: TaskData, folder: Path) -> Prepared:
    arrays = task.pack(train, test)
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    path = folder / f"data-{found.hexdigest()[:16]}.npz"
    if not path.exists():
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
    return Prepared(path, found.hexdigest())
