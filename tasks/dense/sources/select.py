"""Data specs of dense tasks: `scenes:...`, `npz:PATH`, `folder:PATH`, `camvid:PATH`, and `?only=site=NAME`.

Called by the task. Chooses the reader, keeps the pictures of one site, maps labels to the run's classes and checks
the size.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import LABEL
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.sources import arrays, folders, generated
from fednc.tasks.dense.sources.labels import map_values
from fednc.tasks.dense.sources.pictures import Part, Pictures

ONLY = "?only="  # behind a spec: the sites whose pictures are read, `?only=site=A,site=B`
SPECS = "scenes:KEY=VALUE,..., npz:PATH, folder:PATH or camvid:PATH, with ?only=site=NAME for one site"
Readers = Mapping[str, Callable[[str, Part, Any], Pictures]]
READERS: Readers = {
    "scenes": generated.read_scenes,
    "npz": arrays.read_npz,
    "folder": folders.read_folder,
    "camvid": arrays.read_camvid,
}


def read(text: str, part: Part, options: DenseOptions, own: Readers = MappingProxyType({})) -> Pictures:
    """The pictures of data spec `text`, with labels as positions in the run's classes.

    Args:
        own: readers that only the task has, by the kind of their specs.

    Raises:
        DataError: the data is missing, unreadable, or does not have this run's classes and size.
    """
    kind, place, sites = parsed(text, own)
    found = {**READERS, **own}[kind](place, part, options)
    if part == "test" and not found.has_test:
        raise DataError(
            f"{text}: has no test part, and its {len(found.names)} pictures may be training data. Add test "
            "pictures: x_test and y_test in an .npz, a folder `test` beside `train`."
        )
    return _fitted(_of_sites(found, sites, text), text, options)


def read_input(text: str, options: DenseOptions, own: Readers = MappingProxyType({})) -> Pictures:
    """Pictures to predict on: a data spec (its test part, or all), a picture file or a folder of pictures.

    Raises:
        DataError: as `read`.
    """
    path = Path(text).expanduser()
    if path.is_file() and path.suffix.lower() in folders.SUFFIXES:
        return _fitted(folders.read_loose([path], options), text, options)
    if path.is_dir() and not any((path / name).is_dir() for name in (folders.IMAGE, "train", "test")):
        return _fitted(folders.read_loose(folders.pictures_in(path), options), text, options)
    if path.is_dir():
        text = f"folder:{text}"
    elif path.is_file() and path.suffix.lower() == ".npz":
        text = f"npz:{text}"
    kind, place, sites = parsed(text, own)
    return _fitted(_of_sites({**READERS, **own}[kind](place, "test", options), sites, text), text, options)


def parsed(text: str, own: Readers = MappingProxyType({})) -> tuple[str, str, tuple[str, ...]]:
    """(kind, place, sites) of a spec; no sites: all of them. Raises DataError if no reader fits."""
    before, _, chosen = text.partition(ONLY)
    kind, colon, place = before.partition(":")
    if kind not in {**READERS, **own} or not colon or (not place and kind != "scenes" and kind not in own):
        others = "".join(f"{each}:PATH, " for each in own)
        raise DataError(f"data {text!r}: expected {others}{SPECS}")
    if ONLY not in text:
        return kind, place, ()
    pairs = [item.partition("=") for item in chosen.split(",")]
    if not all(column == "site" and name for column, _, name in pairs):
        raise DataError(f"data {text!r}: expected {ONLY}site=NAME, or {ONLY}site=NAME,site=NAME for several sites")
    return kind, place, tuple(name for _, _, name in pairs)


def _of_sites(found: Pictures, sites: tuple[str, ...], text: str) -> Pictures:
    if not sites:
        return found
    index = np.flatnonzero(np.array([one in sites for one in found.sites], dtype=bool))
    if not len(index):
        there = ", ".join(sorted(set(found.sites))) or "none"
        raise DataError(f"{text}: no pictures of site {', '.join(sites)}; sites in this part: {there}")
    return found.select(index)


def _fitted(found: Pictures, text: str, options: DenseOptions) -> Pictures:
    count, _, *size = found.pixel_NCHW.shape
    if count == 0:
        raise DataError(f"{text}: no pictures in it")
    if tuple(size) != tuple(options.size):
        raise DataError(
            f"{text}: pictures are {size[0]}x{size[1]}, but this run's are {options.size[0]}x{options.size[1]} "
            "(task.size, height x width). Resize the arrays, or give the pictures as files; those are resized."
        )
    if LABEL not in found.maps or not options.classes:  # some tasks do without classes
        return found
    label_NHW = map_values(found.maps[LABEL], found.value_names, found.names, options, text)
    return replace(found, maps={**found.maps, LABEL: label_NHW})
