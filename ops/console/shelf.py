"""The run folders that the console shows: each read once, and again only when it has changed.

A running run is read by its log, as it grows. Names of runs come from the browser, so only folders that were found
by looking are ever opened.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fednc.common.errors import DataError
from fednc.ops.console.geometry import Geometry
from fednc.ops.console.run_log import RunLog
from fednc.ops.run_folders.folder import (
    CHECKPOINTS,
    EVENTS,
    ROUNDS,
    SUMMARY,
    RunFolder,
    State,
    is_held,
    read_run,
    runs_in,
)
from fednc.server.rounds.result_files import EXAMPLES
from fednc.server.storage.history import History, RoundRecord

_LIST_S = 2.0  # a list of folders is looked up again after
_RUNNING_S = 10.0  # a run that goes on is read again after
_OPEN_LOGS = 12
_MOST_PICTURES = 60
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass
class OpenRun:
    """One run folder, as far as it has been read."""

    folder: Path
    log: RunLog
    geometry: Geometry

    def read(self) -> None:
        """Take in what is new."""
        self.log.read()
        self.geometry.read()


@dataclass
class RunShelf:
    """All runs below some folders."""

    folders: Sequence[Path]
    _found: dict[str, RunFolder] = field(default_factory=dict)
    _looked: float = -1e9
    _read: dict[Path, tuple[object, float, RunFolder]] = field(default_factory=dict)
    _open: OrderedDict[Path, OpenRun] = field(default_factory=OrderedDict)

    def runs(self) -> dict[str, RunFolder]:
        """All runs by name, the newest first. The name is the path below the folder that was given."""
        if time.monotonic() - self._looked > _LIST_S:
            self._found = self._look()
            self._looked = time.monotonic()
        return self._found

    def _look(self) -> dict[str, RunFolder]:
        found: dict[str, RunFolder] = {}
        for folder in self.folders:
            try:
                listed = runs_in(folder, self._reader)
            except DataError:
                continue  # not made yet
            for run in listed:
                if run.state is not State.FOREIGN:
                    name = run.path.name if run.path == folder else str(run.path.relative_to(folder))
                    found[_unused(name, folder, run.path, found)] = run
        known = {run.path for run in found.values()}
        self._read = {path: one for path, one in self._read.items() if path in known}
        return dict(reversed(found.items()))

    def _reader(self, path: Path) -> RunFolder:
        """`read_run`, unless nothing has changed since the last time."""
        is_running = is_held(path)
        state, now = (is_running, *map(_stamp, _telling(path))), time.monotonic()
        kept = self._read.get(path)
        if kept and kept[0] == state:
            return kept[2]
        if kept and is_running and kept[2].state is State.RUNNING:
            found = kept[2] if now - kept[1] < _RUNNING_S else _grown(kept[2], self.open(path).log)
            now = kept[1] if found is kept[2] else now
        else:
            found = read_run(path)
        self._read[path] = (state, now, found)
        return found

    def of_id(self, run_id: str) -> tuple[str, Path | None]:
        """Name and folder of the run that a server serves; the folder's name is the run's id."""
        found = ((name, run.path) for name, run in self.runs().items() if run.path.name == run_id)
        return next(found, ("", None))

    def open(self, folder: Path) -> OpenRun:
        """A run's log and geometry, up to date."""
        run = self._open.get(folder)
        if run is None:
            run = self._open[folder] = OpenRun(folder, RunLog(folder), Geometry(folder))
            while len(self._open) > _OPEN_LOGS:
                self._open.popitem(last=False)
        self._open.move_to_end(folder)
        run.read()
        return run


def _unused(name: str, folder: Path, path: Path, found: Mapping[str, RunFolder]) -> str:
    """The run's name, with its folder before it if another folder has a run of that name.

    The same run in two folders that overlap keeps its name.
    """
    for taken in (name, f"{folder.name}/{name}", *(f"{folder.name}-{n}/{name}" for n in range(2, len(found) + 3))):
        if taken not in found or found[taken].path == path:
            return taken
    raise AssertionError("there are more names than runs")


def _grown(run: RunFolder, log: RunLog) -> RunFolder:
    """A run that goes on, with the rounds that its log has by now: reading its checkpoint again would take
    long.
    """
    name = run.history.primary.name
    records = [
        RoundRecord(
            round=p.round,
            seconds=p.seconds if math.isfinite(p.seconds) else 0.0,
            test={name: p.primary} if math.isfinite(p.primary) else {},
            bytes_up=p.bytes_up,
            bytes_down=p.bytes_down,
        )
        for p in log.points
    ]
    return replace(
        run,
        history=History(primary=log.primary, rounds=records),
        seconds=sum(record.seconds for record in records),
        bytes_up=sum(record.bytes_up for record in records),
        bytes_down=sum(record.bytes_down for record in records),
    )


def pictures_of(folder: Path) -> list[str]:
    """Names of the pictures of a run: those of its task, then its examples; the newest examples first."""
    found = [path.name for path in sorted(folder.glob("*.png")) if path.is_file()]
    examples = [
        path for path in (folder / EXAMPLES).glob("*") if path.suffix.lower() in PICTURES and path.is_file()
    ]
    return [*(f"{EXAMPLES}/{path.name}" for path in sorted(examples, reverse=True)), *found][:_MOST_PICTURES]


def _telling(path: Path) -> list[Path]:
    return [path / SUMMARY, path / ROUNDS, path / EVENTS, path / CHECKPOINTS]


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size
