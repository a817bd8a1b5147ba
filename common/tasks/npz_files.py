"""Reads .npz files that may come from anywhere: never runs code, and loads only arrays of a plausible size.

Called by the readers of data and splits. Knows nothing about tasks.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fednc.common.errors import DataError

MOST_NPZ_BYTES = 16 << 30  # of all arrays of a file together
MOST_EXPANSION = 200  # times the file's size, beyond _SMALL_BYTES: only zip bombs compress so well, not data
_SMALL_BYTES = 64 << 20

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def read_npz(path: str | Path, wanted: Collection[str] | None = None) -> Arrays:
    """The wanted arrays by name (default: all); others are empty. Checks the sizes that the file declares first.

    Raises:
        ValueError: too large, or pickled objects.
        OSError, zipfile.BadZipFile: not an .npz file.
    """
    refuse_bomb(path)
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] if wanted is None or key in wanted else np.zeros(0) for key in file.files}


def arrays_in(path: Path, source: str, wanted: Collection[str] | None = None) -> Arrays:
    """As `read_npz`, without members that are no arrays. Raises DataError that names `source`: unreadable."""
    try:
        found = read_npz(path, wanted)
    except Exception as e:  # any error of the parser means the same
        raise DataError(f"{source}: not a readable .npz without pickled objects: {e}") from e
    return {key: values for key, values in found.items() if isinstance(values, np.ndarray)}


def texts(values: np.ndarray[Any, np.dtype[Any]], source: str) -> tuple[str, ...]:
    """The texts of an array with one axis; bytes are UTF-8. Raises DataError: another shape, or no text."""
    if values.ndim != 1:
        raise DataError(f"{source} has shape {list(values.shape)}, expected a list of texts")
    try:
        return tuple(map(str, np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values))
    except UnicodeDecodeError as e:
        raise DataError(f"{source}: not text in UTF-8 ({e})") from e


def refuse_bomb(path: str | Path) -> None:
    """Raises ValueError if the arrays that the headers declare would take too much memory."""
    with zipfile.ZipFile(path) as archive:
        sizes = [max(entry.file_size, _declared(archive, entry)) for entry in archive.infolist()]
    most = min(MOST_NPZ_BYTES, max(_SMALL_BYTES, MOST_EXPANSION * Path(path).stat().st_size))
    if sum(sizes) > most:
        raise ValueError(
            f"its arrays would take {sum(sizes) / 2**20:,.0f} MiB, at most {most / 2**20:,.0f} MiB are read from "
            "a file of this size; store them in smaller files, or without compression"
        )


def _declared(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Bytes of the array that an entry's header announces; 0 for an entry that is not an array."""
    with archive.open(entry) as member:
        if member.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            return 0
        major = member.read(2)[:1]
        read = npy.read_array_header_1_0 if major == b"\x01" else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        return math.prod(shape) * dtype.itemsize
