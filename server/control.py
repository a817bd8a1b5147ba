"""What an operator asks of a run, and where the run stands.

Asked on the event loop, obeyed between rounds by the strategy's thread; each attribute is written from one side.
Knows neither gRPC nor nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fednc.common.errors import RefusedError
from fednc.common.files import write_atomically
from fednc.server.history import RoundRecord


class RunControl:
    """The levers and the gauges of one run."""

    def __init__(self) -> None:
        self.paused = False  # the next round waits
        self.stopping = False  # no further round begins
        self.over = False  # nobody is left to ask
        self.waiting = False  # between rounds, for clients or for an operator
        self.round = 0  # under way or about to begin
        self.last: RoundRecord | None = None  # the round completed last
        self.fold_s = 0.0  # spent in its fold

    def complete(self, record: RoundRecord, fold_s: float) -> None:
        """A round is over."""
        self.last, self.fold_s = record, fold_s


class DropList:
    """Names that an operator dropped: refused until the run is over, restarts of the server included."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._path: Path | None = None

    def keep_in(self, path: Path) -> None:
        """Know again what `path` says, and write every later name there."""
        self._path = path
        if path.exists():
            self._names |= set(json.loads(path.read_bytes()))

    def add(self, name: str) -> None:
        """Raises OSError: it cannot be kept."""
        self._names.add(name)
        if self._path:
            write_atomically(self._path, json.dumps(sorted(self._names)).encode())

    def check(self, name: str) -> None:
        """Raises RefusedError for a dropped name."""
        if name in self._names:
            raise RefusedError(f"{name!r} was dropped by an operator and is refused until this run is over")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))
