"""Simulated splits: one index per part, made by flwr-datasets' partitioners and cached on disk.

Called by the task for a client that has one part of a common data set. Importing flwr-datasets takes seconds, so
that happens once per split on a machine; a cached index is checked before use. Every example is in exactly one
part, otherwise the split is refused. Only uses labels.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import warnings
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fednc.common.config.tables import SplitSection
from fednc.common.errors import DataError, MissingExtraError
from fednc.common.files import write_atomically
from fednc.common.seeds import derive
from fednc.common.tasks import npz_files

Index = np.ndarray[Any, np.dtype[np.int64]]
SMALLEST_PART = 2  # one example to train on, one to hold out
DRAWS = 20  # seeds to try before giving up on a dirichlet split; the library draws up to eleven times from each
_DECISIVE = {"kind", "parts", "alpha", "classes_per_part", "seed"}  # keys of [split] that determine the index

log = logging.getLogger(__name__)


def split_index(labels: Index, split: SplitSection) -> list[Index]:
    """For each part the positions of its examples in `labels`, ascending.

    The same for the same labels, settings and version of flwr-datasets.

    Raises:
        DataError: these labels cannot be split so, or the split would leave examples out.
        MissingExtraError: flwr-datasets is not installed.
    """
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    if len(labels) < SMALLEST_PART * split.parts:
        raise DataError(
            f"split.parts: {split.parts} parts of at least {SMALLEST_PART} need {SMALLEST_PART * split.parts} "
            f"examples, but there are {len(labels)}. Use fewer parts or more data."
        )
    cached = _cache_folder() / f"{_key(labels, split)}.npz"
    remembered = _remembered(cached, len(labels), split.parts)
    index = _partition(labels, split) if remembered is None else remembered
    _report_and_check(index, len(labels), split)
    if remembered is None:
        _remember(cached, index)
    return index


def at_few_sites(labels: Index, index: list[Index], sites: int, first: int) -> list[Index]:
    """`index`, but of each class from `first` on only the `sites` parts with most examples keep theirs.

    Ties go to the part with the lower number. The examples that other parts lose are not used.
    """
    found = list(index)
    for label in np.unique(labels[labels >= first]):
        count_P = np.array([(labels[part] == label).sum() for part in index])
        for place in np.argsort(-count_P, kind="stable")[sites:]:
            found[place] = found[place][labels[found[place]] != label]
    return found


def at_first_site(labels: Index, index: list[Index], first: int) -> list[Index]:
    """`index`, but all examples of classes from `first` on are in the first part."""
    known = [part[labels[part] < first] for part in index]
    return [np.sort(np.concatenate([known[0], np.flatnonzero(labels >= first)])), *known[1:]]


def split_digest(index: list[Index]) -> str:
    """sha256 (hex) of the parts' sizes and of all positions, little-endian int64."""
    sizes = np.array([len(part) for part in index], dtype="<i8")
    return hashlib.sha256(sizes.tobytes() + np.concatenate(index).astype("<i8").tobytes()).hexdigest()


def _partition(labels: Index, split: SplitSection) -> list[Index]:
    draw = {"dirichlet": _dirichlet, "shards": _shards, "iid": _iid}[split.kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dirichlet warns at every repeated draw; the result is checked below
        return draw(labels, split)


def _dirichlet(labels: Index, split: SplitSection) -> list[Index]:
    """Divide each class by proportions from Dirichlet(alpha); draw again while a part is too small."""
    for attempt in range(DRAWS):
        partitioner = _library().DirichletPartitioner(
            num_partitions=split.parts,
            partition_by="label",
            alpha=split.alpha,
            min_partition_size=SMALLEST_PART,
            shuffle=False,
            seed=split.seed if attempt == 0 else derive(split.seed, "split", attempt),
        )
        with suppress(ValueError):  # raised after eleven draws from one seed
            return _positions(partitioner, labels, np.arange(len(labels)), split.parts)
    raise DataError(
        f"split.alpha: {split.alpha:g} leaves one of {split.parts} parts with fewer than {SMALLEST_PART} of "
        f"{len(labels)} examples in all of {DRAWS} draws. Use a larger alpha or fewer parts."
    )


def _shards(labels: Index, split: SplitSection) -> list[Index]:
    """Sort examples by label, cut them into equal shards, and deal `classes_per_part` shards to each part.

    Does not use the pathological partitioner: that one gives each part exactly this many classes, but leaves out
    every class that no part happens to draw. Here a shard may span two classes, but nothing is left out.
    """
    wanted = split.parts * split.classes_per_part
    size = -(-len(labels) // wanted)
    if -(-len(labels) // size) < wanted:
        size = max(1, len(labels) // wanted)  # rounding up made too few shards; now some parts get one more
    partitioner = _library().ShardPartitioner(
        num_partitions=split.parts,
        partition_by="label",
        shard_size=size,
        keep_incomplete_shard=True,
        shuffle=False,
        seed=split.seed,
    )
    return _positions(partitioner, labels, np.arange(len(labels)), split.parts)


def _iid(labels: Index, split: SplitSection) -> list[Index]:
    """Shuffle first: the library's partitioner only cuts, and files are often sorted by class."""
    order = np.random.default_rng(split.seed).permutation(len(labels))
    return _positions(_library().IidPartitioner(num_partitions=split.parts), labels, order, split.parts)


def _positions(partitioner: Any, labels: Index, order: Index, parts: int) -> list[Index]:
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"label": labels[order], "position": order})
    return [np.sort(np.asarray(partitioner.load_partition(k)["position"], dtype=np.int64)) for k in range(parts)]


def _library() -> Any:
    try:
        import flwr_datasets.partitioner as library
    except ImportError as e:
        raise _missing() from e
    return library


def _missing() -> MissingExtraError:
    return MissingExtraError("flwr-datasets", "demo", "a simulated split ([split] in the run file)")


def _report_and_check(index: list[Index], examples: int, split: SplitSection) -> None:
    used = np.unique(np.concatenate(index))
    dealt = sum(len(part) for part in index)
    smallest = min(len(part) for part in index)
    log.info(
        "split %s into %d parts: %d of %d examples used, %d dropped, smallest part %d",
        *(split.kind, split.parts, len(used), examples, examples - len(used), smallest),
    )
    if len(used) != examples or dealt != examples or smallest < SMALLEST_PART:
        raise DataError(
            f"split.kind {split.kind!r} with {split.parts} parts uses {len(used)} of {examples} examples, drops "
            f"{examples - len(used)}, deals {dealt - len(used)} twice, and its smallest part has {smallest}. "
            f"Every example must be in exactly one part, and every part needs {SMALLEST_PART}. "
            "Use fewer parts or another kind."
        )


def _key(labels: Index, split: SplitSection) -> str:
    try:
        library = version("flwr-datasets")
    except PackageNotFoundError as e:
        raise _missing() from e
    settings = split.model_dump(mode="json", include=_DECISIVE)
    text = json.dumps({"split": settings, "flwr-datasets": library}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\n" + labels.astype("<i8").tobytes()).hexdigest()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fednc" / "splits"
    except RuntimeError:  # a user without a home: no file can exist below this path, so nothing is cached
        return Path(os.devnull) / "fednc"


def _remembered(path: Path, examples: int, parts: int) -> list[Index] | None:
    """The cached index at `path`, if it is complete and plausible."""
    try:
        file = npz_files.read_npz(path)
        position, size = file["position"], file["size"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(size) != parts or size.min() < SMALLEST_PART or size.sum() != examples:
        return None
    if not np.array_equal(np.sort(position), np.arange(examples)):
        return None
    return list(np.split(position, np.cumsum(size)[:-1]))


def _remember(path: Path, index: list[Index]) -> None:
    """Cache the index. A read-only home is not an error: the next process computes the index again."""
    file = io.BytesIO()
    np.savez(file, position=np.concatenate(index), size=np.array([len(part) for part in index]))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
