"""The rows of a comparison on disk: one file per run while it runs, one archive of them all when it is finished.

`rows.py` writes the files and `engine.py` the archive; both read them, and so does `results_folder.py`. A row is
in the archive before its file is deleted, so a kill at any moment loses nothing; a row found in both places
counts once. Knows nothing about a row except its name.

The archive is JSON Lines, sorted, in gzip without time or file name: the same rows give the same bytes.
"""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fednc.bench.compare.plan import file_name
from fednc.common import fault_injection
from fednc.common.errors import DataError
from fednc.common.files import write_atomically

Result = dict[str, Any]
ARCHIVE = "runs.jsonl.gz"
_LOCK = ".runs.lock"
_PARTS_OF_NAME = ("kind", "setting", "variant", "seed", "lr", "digest")


def write_run(folder: Path, result: Result) -> None:
    """Write the file of one run."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / name_of(result), text.encode())


def read_runs(folder: Path) -> dict[str, Result]:
    """All rows in `folder`, archived or not, by file name and sorted by it; none if there is no such folder.

    Raises:
        DataError: the archive or a file cannot be read or is not what this program wrote.
    """
    # Files first: one that another process archives in the meantime is in the archive by then.
    rows = _read_files(folder) | _read_archive(folder)
    return dict(sorted(rows.items()))


def archive_runs(folder: Path) -> None:
    """Move the rows that have a file of their own into the archive. Does nothing if there are none.

    Raises:
        DataError: as `read_runs`; then nothing has changed.
    """
    with _locked(folder):
        for unfinished in folder.glob(f".{ARCHIVE}.*"):  # left by a process that was killed
            unfinished.unlink()
        files, archived = _read_files(folder), _read_archive(folder)
        if new := files.keys() - archived.keys():
            rows = archived | {name: files[name] for name in new}
            write_atomically(folder / ARCHIVE, _packed(rows))
        fault_injection.at("compare.archived")
        for name in files:
            (folder / name).unlink(missing_ok=True)


def name_of(result: Mapping[str, Any]) -> str:
    """The file name of a row. It contains part of the digest, so no two rows of a folder share one."""
    return file_name(*(result[key] for key in _PARTS_OF_NAME))


def _read_files(folder: Path) -> dict[str, Result]:
    rows = {}
    for path in [*folder.glob("tuning-*.json"), *folder.glob("final-*.json")]:
        try:
            rows[path.name] = _parsed(path.read_bytes())
        except FileNotFoundError:  # archived since it was listed
            continue
        except (ValueError, KeyError) as e:
            raise DataError(f"{path} is not the file of a run: {e}. Delete it to run that row again") from e
        if name_of(rows[path.name]) != path.name:
            wanted = name_of(rows[path.name])
            raise DataError(f"{path} holds the row {wanted}. Rename it, or delete it to run that row again")
    return rows


def _read_archive(folder: Path) -> dict[str, Result]:
    path = folder / ARCHIVE
    if not path.exists():
        return {}
    try:
        rows = [_parsed(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (ValueError, KeyError, EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise DataError(
            f"{path} is damaged: {e}. Restore it from git, or delete it to run everything again"
        ) from e
    return {name_of(row): row for row in rows}


def _parsed(text: bytes) -> Result:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key in _PARTS_OF_NAME:
        row[key]
    return row


def _packed(rows: Mapping[str, Result]) -> bytes:
    lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for _, row in sorted(rows.items())]
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write("".join(lines).encode())
    return packed.getvalue()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: two that replaced the archive together would each lose the other's rows."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
