"""A policy's records, which survive restarts: runs and answers over the same data, and this client's secret.

A folder that only its owner can read (0700, files 0600) with one file that is replaced as a whole, and a lock, so
that two clients with the same data share one count. Used by `guard.py`; must not know what an answer holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednc.client.policy.rules import Quota
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically

_PIECE_BYTES = 1 << 20


class _Use(BaseModel):
    """How one set of data was used. `day` never goes back, whatever the clock does."""

    model_config = ConfigDict(extra="forbid")

    hold_out: float | None = None
    pinned: str = ""
    day: str = ""
    runs: list[str] = Field(default_factory=list)
    queries: int = 0
    all_queries: int = 0


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    secret: str = Field(min_length=64)
    data: dict[str, _Use] = Field(default_factory=dict)


class Ledger:
    """The records of one policy."""

    def __init__(self, folder: Path) -> None:
        """Open or create the folder. Raises ConfigError: the records cannot be read or written."""
        self.folder, self._path = folder, folder / "state.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            with self._changing() as state:
                self.secret = state.secret
        except OSError as e:
            raise ConfigError(
                f"the policy's folder {folder} cannot be used ({e.strerror}): let this user write to it, or name "
                "another folder with `state`"
            ) from e

    def pin_hold_out(self, data: str, share: float) -> float:
        """The share of this data that was held out when it was first used, which is `share` the first time."""
        with self._changing() as state:
            use = state.data.setdefault(data, _Use())
            if use.hold_out is None:
                use.hold_out = share
            return use.hold_out

    def admit_run(self, data: str, digest: str, run_id: str, quota: Quota, *, pin: bool, keep: bool = True) -> str:
        """Record a run over this data and return "", or return the code that forbids it.

        `keep=False` records nothing.
        """
        with self._changing(keep=keep) as state:
            use = _today(state.data.setdefault(data, _Use()))
            if pin and use.pinned not in ("", digest):
                return "pinned"
            run = f"{digest}/{hashlib.sha256(run_id.encode()).hexdigest()}"
            if quota.runs_per_day and run not in use.runs:
                if len(use.runs) >= quota.runs_per_day:
                    return "runs-quota"
                use.runs.append(run)
            use.pinned = use.pinned or digest
            return ""

    def count_query(self, data: str, quota: Quota) -> str:
        """Count one more answer about this data and return "", or return the code that forbids it."""
        with self._changing() as state:
            use = _today(state.data.setdefault(data, _Use()))
            over_today = quota.queries_per_day and use.queries >= quota.queries_per_day
            if over_today or (quota.queries and use.all_queries >= quota.queries):
                return "queries-quota"
            use.queries, use.all_queries = use.queries + 1, use.all_queries + 1
            return ""

    @contextmanager
    def _changing(self, *, keep: bool = True) -> Iterator[_State]:
        """The state on the disk, written back at the end if it has changed. Raises OSError."""
        with os.fdopen(os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._read()
            before = state.model_dump_json() if state else ""
            state = state or _State(secret=secrets.token_hex(32))
            yield state
            if keep and (after := state.model_dump_json()) != before:
                write_atomically(self._path, after.encode(), 0o600)

    def _read(self) -> _State | None:
        try:
            return _State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as e:
            raise ConfigError(
                f"{self._path} is damaged ({e.error_count()} errors), so earlier runs and answers are unknown. "
                "Restore it from a backup; deleting it sets all counts to zero."
            ) from e


def _today(use: _Use) -> _Use:
    day = datetime.fromtimestamp(time.time(), UTC).date().isoformat()
    if day > use.day:
        use.day, use.runs, use.queries = day, [], 0
    return use


def data_fingerprint(spec: str) -> str:
    """sha256 of the data itself if `spec` names a file or folder here, else of `spec`; blocks.

    That of a folder is over the names and contents of its files, in order. Raises OSError.
    """
    found = hashlib.sha256()
    path = Path(spec.partition(":")[2])
    if not spec.partition(":")[2] or not path.exists():
        found.update(spec.encode())
        return found.hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(path).as_posix()
        found.update(hashlib.sha256(name.encode()).digest() + _hash(file))
    return found.hexdigest()


def _hash(file: Path) -> bytes:
    found = hashlib.sha256()
    with file.open("rb") as f:
        while piece := f.read(_PIECE_BYTES):
            found.update(piece)
    return found.digest()
