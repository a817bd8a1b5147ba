"""Digests of what a step depends on: plain values, and the files behind a data spec.

Used by the steps and by the triggers. A step whose inputs have the same digest need not be done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.tasks.data_spec import parse_spec

_PIECE_BYTES = 1 << 20


def digest_of(value: Any) -> str:
    """sha256 (hex) of JSON values; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def data_digest(spec: str) -> str:
    """sha256 (hex) over the files that a data spec names; empty if it names none on this machine.

    Files whose size and time have not changed since this process last read them are not read again.

    Raises:
        DataError: a file cannot be read.
    """
    place = Path(parse_spec(spec).place or spec)
    try:
        return _hashed(place, tuple(_state_of(path) for path in _files(place))) if place.exists() else ""
    except OSError as e:
        raise DataError(f"{spec}: {e.filename} cannot be read ({e.strerror})") from e


@lru_cache(maxsize=1024)
def _hashed(place: Path, states: tuple[tuple[str, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _, _ in states:
        path = Path(name)
        digest.update(b"%s\0%d\0" % (path.relative_to(place).as_posix().encode(), size))
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _state_of(path: Path) -> tuple[str, int, int, int]:
    """Changes when the file is written or replaced."""
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns, found.st_ino


def _files(place: Path) -> Iterator[Path]:
    yield from sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
