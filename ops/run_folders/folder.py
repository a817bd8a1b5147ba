"""One run folder as a row: method, data, rounds, metric and state. A folder that cannot be read says why.

Reads what the server writes (`summary.json`, `rounds.json`, checkpoints, `events.jsonl`, the lock) without loading
tensors, so that a folder of hundreds of runs is listed in a moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.model_export import FOLDER, MANIFEST
from fednc.common.peer_text import one_line
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.server.storage.folder_lock import LOCK
from fednc.server.storage.history import History

SUMMARY, ROUNDS, EVENTS, CHECKPOINTS = "summary.json", "rounds.json", "events.jsonl", "checkpoints"
_OF_A_RUN = (EVENTS, ROUNDS, CHECKPOINTS)
_DEEPEST = 2  # folders of runs in folders: a demo and a comparison have their runs one below their own
_TAIL_BYTES = 1 << 16  # of the event log: the last events


class State(StrEnum):
    """How a run stands."""

    RUNNING = "running"  # a process holds the folder
    FINISHED = "finished"
    STOPPED = "stopped"  # an operator, a callback or Ctrl-C ended it
    FAILED = "failed"
    RESUMABLE = "resumable"  # interrupted or killed; the server continues it with the same --folder
    DAMAGED = "damaged"  # looks like a run, and cannot be read
    FOREIGN = "not a run"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a run folder says about its run.

    Attributes:
        config: the run file without [server], as plain values; {} if it is not stored.
        planned: rounds that the run file asks for; None if unknown.
        problem: why the run ended early, or why the folder cannot be read; empty otherwise.
    """

    path: Path
    state: State
    config: dict[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=History)
    planned: int | None = None
    problem: str = ""
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def method(self) -> str:
        """Name of the method; empty if unknown."""
        return str(self.config.get("method", {}).get("name", ""))

    @property
    def data(self) -> str:
        """Task and test data."""
        task, test = self.config.get("task", {}).get("name", ""), self.config.get("evaluate", {}).get("test", "")
        return f"{task}: {test}" if test else str(task)

    @property
    def done(self) -> int:
        """Completed rounds."""
        return len(self.history.rounds)

    @property
    def last(self) -> float | None:
        """The primary metric after the last evaluated round."""
        return self.history.curve[-1][1] if self.history.curve else None

    @property
    def best(self) -> float | None:
        """The best value of the primary metric."""
        return self.history.primary.best([value for _, value in self.history.curve])


def runs_in(folder: Path, read: Callable[[Path], RunFolder] | None = None) -> list[RunFolder]:
    """All runs in `folder`, which may be a run itself, oldest first; folders without any run are listed too.

    Args:
        read: takes the place of `read_run`, for callers that keep what they have read.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give the folder that holds runs (server.runs, `runs` by default)"
        )
    read = read or read_run
    if _is_run(folder):
        return [read(folder)]
    return sorted(_below(folder, _DEEPEST, read), key=lambda run: _changed(run.path))


def _below(folder: Path, depth: int, read: Callable[[Path], RunFolder]) -> Iterator[RunFolder]:
    for path in _folders_in(folder):
        if _is_run(path):
            yield read(path)
        elif deeper := list(_below(path, depth - 1, read)) if depth > 1 else []:
            yield from (run for run in deeper if run.state is not State.FOREIGN)
            if all(run.state is State.FOREIGN for run in deeper):
                yield RunFolder(path=path, state=State.FOREIGN)
        else:
            yield RunFolder(path=path, state=State.FOREIGN)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in _OF_A_RUN)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_run(path: Path) -> RunFolder:
    """What is in one run folder; never fails because of its content."""
    try:
        return _read(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        why = f"{type(e).__name__}: {one_line(e, 200)}"
        return RunFolder(path=path, state=State.DAMAGED, problem=why)


def _read(path: Path) -> RunFolder:
    summary = read_json(path / SUMMARY, {})
    checkpoint = _newest_checkpoint(path)
    model = read_json(path / FOLDER / MANIFEST, {})
    config = checkpoint.get("config") or model.get("run") or {}
    primary = MetricInfo(**summary["metric"]) if "metric" in summary else _primary(path)
    rounds = max(read_json(path / ROUNDS, []), checkpoint.get("history", []), key=len)
    history = History.from_json(rounds, primary)
    history.summary()  # every value that is shown must be usable
    state, problem = _state(path, summary, has_checkpoint=bool(checkpoint))
    return RunFolder(
        path=path,
        state=state,
        config={key: value for key, value in config.items() if key not in ("server", "track")},
        history=history,
        planned=_planned(config),
        problem=problem,
        seconds=float(summary.get("duration_s") or sum(record.seconds for record in history.rounds)),
        bytes_up=sum(record.bytes_up for record in history.rounds),
        bytes_down=sum(record.bytes_down for record in history.rounds),
    )


def _state(path: Path, summary: dict[str, Any], *, has_checkpoint: bool) -> tuple[State, str]:
    """The state, and why the run ended early."""
    if is_held(path):
        return State.RUNNING, ""
    ended, kinds = str(summary.get("ended", "")), _last_kinds(path)
    if ended in ("", "finished") and summary and "start" not in _after_last(kinds, "done"):
        return (State.STOPPED, "an operator stopped it") if "stop" in kinds else (State.FINISHED, "")
    if not summary or ended == "interrupted" or "start" in _after_last(kinds, "done"):
        if has_checkpoint:
            return State.RESUMABLE, ended
        return (State.STOPPED, ended) if summary else (State.FAILED, "it ended before its first checkpoint")
    served = (path / "starts").exists()  # a run in one process ends early only when it is told to
    return (State.FAILED if served else State.STOPPED), one_line(ended, 200)


def _after_last(kinds: list[str], kind: str) -> list[str]:
    """What was recorded after the last event of a kind; [] if there is none."""
    return kinds[len(kinds) - kinds[::-1].index(kind) :] if kind in kinds else []


def is_held(path: Path) -> bool:
    """Whether a process has the run folder open as its own."""
    try:
        handle = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _newest_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest of the newest checkpoint that can be read; {} if there is none."""
    for manifest in sorted((path / CHECKPOINTS).glob("round-*.json"), reverse=True):
        try:
            found: dict[str, Any] = read_json(manifest, {})
        except ValueError:
            continue
        if found:
            return found
    return {}


def _last_kinds(path: Path) -> list[str]:
    return [str(event.get("kind")) for event in _last_events(path)]


def _last_events(path: Path) -> list[dict[str, Any]]:
    """The last events; a line that was cut off is left out."""
    try:
        with (path / EVENTS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    return list(objects_in(lines))


def objects_in(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines; a line that is damaged or not complete is left out."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _primary(path: Path) -> MetricInfo:
    """The metric of a run that has no summary yet, from the event of its start."""
    for event in _last_events(path):
        if event.get("kind") == "start" and isinstance(event.get("metric"), dict):
            return MetricInfo(**event["metric"])
    return ACCURACY


def _planned(config: dict[str, Any]) -> int | None:
    total = config.get("rounds", {}).get("total")
    return None if total is None else int(total) + sum(int(one["rounds"]) for one in config.get("sessions") or [])


def read_json(path: Path, missing: Any) -> Any:
    """The content of a JSON file with a value of the kind of `missing`. Raises ValueError: it has another."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return missing
    try:
        found = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{path.name} is not JSON ({e})") from e
    if not isinstance(found, type(missing)):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not a {type(missing).__name__}")
    return found
