"""Suggests `[task]` keys that fit given pictures with labels: class names, void values, size, mean and deviation.

`fednc init` calls it through a dense task, before there is a run file; later only the run file counts.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import torch

from fednc.common.errors import DataError
from fednc.common.tasks.api import Suggestion
from fednc.tasks.dense.maps import LABEL, VOID
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.sources import arrays, folders, select
from fednc.tasks.dense.sources.pictures import Pictures

LARGEST_GUESS = 128  # pixels of the longer side; the owner may choose a larger size
VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "unknown", "ignore"})
_ROUNDED = 4  # decimals of mean and std
_SAMPLE = 512  # pictures that mean and std are measured on


def suggest(text: str) -> Suggestion:
    """Keys of `[task]` for the training pictures at `text`, a data spec of a dense task.

    Raises:
        DataError: the data is missing, unreadable or has no labels.
    """
    kind, place, _ = select.parsed(text)
    size, notes = _size_of(kind, place)
    found = select.READERS[kind](place, "train", DenseOptions(classes=("first", "second"), size=size))
    if LABEL not in found.maps:
        raise DataError(f"{text}: its pictures have no labels, so there are no classes to read from it")
    names, void, more = _names_of(found)
    options = {"classes": names, "size": list(size), **({"void": void} if void else {}), **moments(found, text)}
    return Suggestion(options, (*found.notes, *notes, *more), measured=True)


def _size_of(kind: str, place: str) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(height, width) for the run, and what to say of it. Arrays have their own size; files are resized."""
    if kind == "npz":
        file = arrays.load_arrays(place, kind)
        given = file["x_train"].shape[1:3] if "x_train" in file and file["x_train"].ndim == 4 else (40, 40)
        return (int(given[0]), int(given[1])), ()
    if kind == "folder":
        return size_of_files(place)
    if kind == "camvid":
        return (90, 120), ("size 90 x 120 is half of the file's; a larger one finds thin classes better",)
    return (40, 40), ()


def size_of_files(place: str) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(height, width) for the picture files of a folder, and what to say of it. Raises DataError."""
    height, width = folders.size_of_first(place)
    shrink = min(1.0, LARGEST_GUESS / max(height, width))
    size = (max(8, round(height * shrink)), max(8, round(width * shrink)))
    return size, (f"size {size[0]} x {size[1]} is that of the first picture, but at most {LARGEST_GUESS}",)


def _names_of(found: Pictures) -> tuple[list[str], list[str], tuple[str, ...]]:
    """(classes, names of void values, what to say of them)."""
    used = [value for value in torch.unique(found.maps[LABEL]).tolist() if value != VOID]
    if found.value_names is None:
        if len(used) < 2:
            raise DataError(f"labels have {len(used)} values beside void (255); at least two classes are needed")
        names = [str(value) for value in range(used[-1] + 1)]
        return names, [], ("label values have no names: put one name a line into classes.txt, from value 0 on",)
    void = [name for name in found.value_names if name.lower() in VOID_NAMES]
    names = [name for name in found.value_names if name not in void]
    unused = [name for value, name in enumerate(found.value_names) if value not in used and name in names]
    listed = ", ".join(map(repr, unused[:20]))
    return names, void, (f"no pixel of {len(unused)} of the classes here: {listed}",) if unused else ()


def moments(found: Pictures, text: str) -> dict[str, list[float]]:
    """Mean and standard deviation of the pixels, as keys of `[task]`. Raises DataError: a channel is constant."""
    sample_NCHW = found.pixel_NCHW[:: max(1, len(found.pixel_NCHW) // _SAMPLE)].float() / 255
    mean_C = [round(value, _ROUNDED) for value in sample_NCHW.mean(dim=(0, 2, 3)).tolist()]
    std_C = [round(value, _ROUNDED) for value in sample_NCHW.std(dim=(0, 2, 3), correction=0).tolist()]
    if min(std_C) <= 0:
        raise DataError(f"{text}: a channel has one value in all pictures (mean {mean_C}); check the pictures")
    return {"mean": mean_C, "std": std_C}
