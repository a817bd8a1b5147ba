"""The examples of the server's own test data that a model is least sure of, for a person to look at and to label.

Called by `fednc queue`. Works with any task whose predictions are scores of classes; pictures are the task's own.

Legend: B batch, K classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import ConfigError, DataError
from fednc.common.files import private_folder, write_atomically
from fednc.common.model_export import ExportedModel
from fednc.common.peer_text import one_line
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.evaluation import evaluation_batches

TABLE, ARRAYS, LABELLED = "queue.csv", "queue.npz", "labelled.npz"
_PICTURES = 100  # at most


@dataclass(frozen=True)
class Unsure:
    """One example.

    Attributes:
        index: its place in the test data, from 0.
        margin: probability of the best class minus that of the second; of maps and clouds the mean over their
            members.
        predicted, second: for an example with one class; else empty.
        confidence: probability of the best class, as a mean where there are members.
    """

    index: int
    name: str
    margin: float
    predicted: str
    second: str
    confidence: float


def least_sure(
    model: ExportedModel, data: TaskData, most: int, before_batch: Callable[[], None] = lambda: None
) -> list[Unsure]:
    """The `most` examples with the smallest margin, the smallest first; ties in the order of the data.

    Raises:
        ConfigError: the model has fewer than two classes, so there is no margin.
        DataError: there are no examples.
    """
    if len(model.class_names) < 2:
        raise ConfigError(f"task {model.task.name!r}: a queue needs a model with two classes or more")
    found: list[Unsure] = []
    for batch in evaluation_batches(model, data, model.run.evaluate.batch, before_batch):
        scores = model(model.task.inputs_of(batch))
        found += _rows(model, model.probabilities(scores), len(found), data.names)
    if not found:
        raise DataError("the test data has no examples")
    return sorted(found, key=lambda each: (each.margin, each.index))[:most]


def _rows(model: ExportedModel, share: Tensor, start: int, names: Sequence[str]) -> list[Unsure]:
    """Of a batch of probabilities [B, K, ...]."""
    two, place = share.topk(2, dim=1)
    margin_B = (two[:, 0] - two[:, 1]).flatten(1).mean(dim=1) if two.ndim > 2 else two[:, 0] - two[:, 1]
    best_B = two[:, 0].flatten(1).mean(dim=1) if two.ndim > 2 else two[:, 0]
    rows = []
    for b in range(len(share)):
        index = start + b
        of_one = place.ndim == 2
        rows.append(
            Unsure(
                index=index,
                name=one_line(names[index]) if names else str(index),
                margin=margin_B[b].item(),
                predicted=model.class_names[int(place[b, 0])] if of_one else "",
                second=model.class_names[int(place[b, 1])] if of_one else "",
                confidence=best_B[b].item(),
            )
        )
    return rows


def write_queue(folder: Path, queue: Sequence[Unsure]) -> None:
    """Write queue.csv, with an empty column `label` for a person to fill, and queue.npz (index and margin)."""
    private_folder(folder)
    text = io.StringIO()
    rows = csv.DictWriter(text, [*asdict(queue[0]), "label"])
    rows.writeheader()
    rows.writerows({**{key: _safe(value) for key, value in asdict(each).items()}, "label": ""} for each in queue)
    write_atomically(folder / TABLE, text.getvalue().encode())
    arrays = io.BytesIO()
    np.savez(arrays, index=np.array([each.index for each in queue]), margin=np.array([e.margin for e in queue]))
    write_atomically(folder / ARRAYS, arrays.getvalue())


def _safe(value: Any) -> Any:
    """Names come from files of others: a spreadsheet must not run them as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def write_pictures(folder: Path, model: ExportedModel, data: TaskData, queue: Sequence[Unsure]) -> int:
    """Write what the task draws of these examples, `0001-...` first; how many files. At most a hundred
    examples.
    """
    rank = {each.index: place for place, each in enumerate(queue[:_PICTURES], start=1)}
    written = 0
    for index, batch in enumerate(evaluation_batches(model, data, 1)):
        if index not in rank:
            continue
        output = model(model.task.inputs_of(batch))
        name = data.names[index] if data.names else str(index)
        for file, content in model.task.prediction_files(batch, output, [name]).items():
            private_folder(folder)
            write_atomically(folder / f"{rank[index]:04d}-{Path(file).name}", content)
            written += 1
    return written


def read_labels(path: Path, class_names: Sequence[str], examples: int) -> dict[int, int]:
    """{index: class} of a CSV with the columns `index` and `label`; rows without a label are left out.

    Raises DataError: a column is missing, an index is not of the data or comes twice, a label is no class.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read as a CSV file ({e})") from e
    if not rows or not {"index", "label"} <= rows[0].keys():
        raise DataError(f"{path}: needs the columns `index` and `label`; `fednc queue` writes them to {TABLE}")
    place, found = {name: number for number, name in enumerate(class_names)}, dict[int, int]()
    for line, row in enumerate(rows, start=2):
        label = (row["label"] or "").strip()
        if not label:
            continue
        index = row["index"] or ""
        if not index.isdecimal() or int(index) >= examples:
            raise DataError(f"{path}, line {line}: index {index!r:.40} is not one of 0 to {examples - 1}")
        if label not in place:
            raise DataError(
                f"{path}, line {line}: {label!r:.80} is not a class of the run: {', '.join(class_names[:20])}"
            )
        if int(index) in found:
            raise DataError(f"{path}, line {line}: example {index} has a label already")
        found[int(index)] = place[label]
    if not found:
        raise DataError(f"{path}: no row has a label yet")
    return found


def write_labelled(folder: Path, model: ExportedModel, data: TaskData, labels: dict[int, int]) -> str:
    """Write the labelled examples as a data file; the data spec with which the task reads it.

    Raises DataError: the task cannot pack its data, or an example of it has more than one label.
    """
    arrays = model.task.pack(data.to(torch.device("cpu")), data.to(torch.device("cpu")))
    chosen = np.array(sorted(labels))
    for name in list(arrays):
        if {"train", "test"} & set(name.split("_")):
            arrays[name] = arrays[name][chosen]
    given = np.array([labels[int(index)] for index in chosen])
    for name in ("y_train", "y_test"):
        if name not in arrays or arrays[name].shape != given.shape:
            raise DataError(
                f"task {model.task.name!r}: its examples do not have one label each, so a CSV cannot give it"
            )
        arrays[name] = given.astype(arrays[name].dtype)
    private_folder(folder)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / LABELLED, file.getvalue())
    return model.task.packed_spec(folder / LABELLED)
