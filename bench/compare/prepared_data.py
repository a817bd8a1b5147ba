"""The data of a comparison as .npz files for tuning and for results. Tuning never sees the test part.

Natural clients (`data.clients`) have a file each, and one more has the data of all. Called once by `engine.py`;
rows read the files. They are in the folder of results, where git ignores them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from fednc.bench.compare.plan import CLIENT, Comparison, client_of
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.files import write_atomically
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part, Task, TaskData

Arrays = dict[str, np.ndarray[Any, Any]]
_SUBSET_SEED = 0  # which examples of a larger data set: the same for every comparison


@dataclass(frozen=True)
class Prepared:
    """A file of arrays for training and testing, and the sha256 of its arrays.

    Attributes:
        path: the file; the data of all clients.
        sha256: hex, of all that the rows read.
        clients: the file of each natural client, by name.
        repeats: for tuning, several validation splits to average over; then `path` is that of the first.
    """

    path: Path
    sha256: str
    clients: Mapping[str, Path] = field(default_factory=dict)
    repeats: tuple[Prepared, ...] = ()

    @property
    def files(self) -> set[Path]:
        """All files; their names differ."""
        return {self.path, *self.clients.values(), *(path for one in self.repeats for path in one.files)}

    def moved(self, folder: Path) -> Prepared:
        """The same files in another folder."""
        clients = {name: folder / path.name for name, path in self.clients.items()}
        repeats = tuple(one.moved(folder) for one in self.repeats)
        return replace(self, path=folder / self.path.name, clients=clients, repeats=repeats)


Pair = tuple[TaskData, TaskData]  # for training, for testing


def prepare(plan: Comparison, places: dict[str, str], folder: Path) -> tuple[Prepared, Prepared]:
    """Write files: for tuning, the training part split into training and validation; for results, all of it.

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
    whole = _read(plan, task, places)
    tuning = []
    for seed in range(plan.tuning.seed, plan.tuning.seed + plan.tuning.repeats):
        halves = {name: _held_out(train, plan, seed) for name, (train, _) in whole.items()}
        tuning.append(_write_all(task, halves, folder))
    return _repeated(tuning), _write_all(task, whole, folder)


def _read(plan: Comparison, task: Task, places: dict[str, str]) -> dict[str, Pair]:
    """(training data, test data) of each natural client by name; of data without clients under the name ""."""
    found = {}
    for name, value in (plan.data.clients or {"": ""}).items():
        spec, test = (
            _spec(text, places, {CLIENT: value} if plan.data.clients else {})
            for text in (plan.data.source, plan.data.test or plan.data.source)
        )
        found[name] = (
            _subset(task.load_train(spec, None, None), plan.data.train_examples, f"{spec}: training"),
            _subset(task.load_test(test), plan.data.test_examples, f"{test}: test"),
        )
    return found


def _held_out(train: TaskData, plan: Comparison, seed: int) -> Pair:
    return train.hold_out(plan.tuning.val_share, seed)


def _repeated(found: Sequence[Prepared]) -> Prepared:
    """One for all repeats."""
    if len(found) == 1:
        return found[0]
    sha256 = hashlib.sha256(" ".join(one.sha256 for one in found).encode()).hexdigest()
    return replace(found[0], sha256=sha256, repeats=tuple(found))


def _write_all(task: Task, pairs: Mapping[str, Pair], folder: Path) -> Prepared:
    """A file for each client, and one for all of them together."""
    packed = {name: task.pack(train, test) for name, (train, test) in pairs.items()}
    if set(packed) == {""}:
        return _write(packed[""], folder)
    alone = {name: _write(arrays, folder) for name, arrays in packed.items()}
    pooled = _write(_together(packed), folder)
    text = " ".join([pooled.sha256, *(f"{name} {one.sha256}" for name, one in alone.items())])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Prepared(pooled.path, sha256, {name: one.path for name, one in alone.items()})


def pool(run: RunConfig, data: Path) -> Path:
    """A file with the training examples of all parts of the run's split, each part as its client has it.

    Its test examples are shifted as the run's are, so a run that reads it has no split.

    Raises:
        DataError: a part cannot be read.
    """
    assert run.split is not None
    task, count = discovery.get(run), run.split.parts
    spec = task.packed_spec(data)
    test = task.load_test(spec)
    parts = (task.load_train(spec, Part(index, count), run.split) for index in range(count))
    packed = {client_of(index): task.pack(part, test) for index, part in enumerate(parts)}
    return _write(_together(packed, {"train"}), data.parent).path


def _together(packed: Mapping[str, Arrays], of: Set[str] = frozenset({"train", "test"})) -> Arrays:
    """The arrays of all clients: those with a row for each example one after the other (see `Task.pack`).

    `of`: the examples in question; arrays of others must be the same at all clients.

    Raises:
        DataError: an array that is not about examples differs between clients.
    """
    first, *others = packed.values()
    found = {}
    for key, values in first.items():
        if of & set(key.split("_")):
            found[key] = np.concatenate([arrays[key] for arrays in packed.values()])
        elif all(np.array_equal(values, arrays[key]) for arrays in others):
            found[key] = values
        else:
            raise DataError(f"{key!r} of the packed data differs between the clients {', '.join(packed)}")
    return found


def _spec(source: str, places: dict[str, str], client: dict[str, str]) -> str:
    named = {name for _, name, _, _ in Formatter().parse(source) if name}
    if unused := sorted(set(places) - named):
        raise ConfigError(
            f"--data {unused[0]}=...: data.source is {source!r} and names no {{{unused[0]}}}; "
            f"write the place of the path into it, e.g. source = 'npz:{{{unused[0]}}}'"
        )
    try:
        return source.format_map({**places, **client})
    except KeyError as e:
        raise ConfigError(f"data.source {source!r} needs a path: add --data {e.args[0]}=PATH") from e


def _subset(data: TaskData, wanted: int, what: str) -> TaskData:
    if wanted > data.examples:
        raise ConfigError(f"{what} part has {data.examples} examples, but the comparison asks for {wanted}")
    if wanted in (0, data.examples):
        return data
    return data.hold_out(wanted / data.examples, _SUBSET_SEED)[1]


def _write(arrays: Arrays, folder: Path) -> Prepared:
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
