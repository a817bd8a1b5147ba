"""Feeds trackers with what happens in a run, each in its own thread: a slow, stuck or broken one harms no run.

Listens to the event log while the server command or `fednc.run` runs. Knows trackers by name only.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fednc.common import plugins
from fednc.common.address import HIDDEN, without_secrets
from fednc.common.config.run import RunConfig, explain
from fednc.common.errors import ConfigError, FedncError
from fednc.common.peer_text import one_line
from fednc.common.plugins import TRACKERS, Plugin
from fednc.common.tasks import discovery
from fednc.common.trackers import End, Round, Start, Tracker
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted, TrackerFailed
from fednc.server.storage.history import RoundRecord

_MOST_WAITING = 1000  # rounds that a slow tracker may lag behind
_SECRET = re.compile("pass|secret|token|key", re.IGNORECASE)  # in the names of settings
_FINISH_S = 5.0  # how long the end of a run waits for all trackers together


def load(plugin: Plugin) -> type[Tracker]:
    """The class of one plug-in. Raises ConfigError if it cannot be imported or is not a tracker."""
    loaded = plugin.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Tracker)):
        where = f"tracker {plugin.name!r} of {plugin.distribution} {plugin.release}"
        raise ConfigError(f"{where}: {plugin.entry_point.value} is not a class that derives from fednc's Tracker")
    return loaded


@contextmanager
def tracked(run: RunConfig, run_id: str, folder: Path | None, events: EventLog) -> Iterator[None]:
    """While the block runs, the trackers that the run file names are told about the run.

    Raises:
        ConfigError: one of them is not installed, or cannot be loaded or created.
    """
    names = dict.fromkeys([*run.server.trackers, *run.track])
    created = {name: _create(name, run.track.get(name, {})) for name in names}
    threads = [_Thread(name, tracker, events, run.track.get(name, {})) for name, (tracker, _) in created.items()]
    start = Start(run_id=run_id, folder=folder, config=run.decisive(), digest=run.digest, primary=_primary(run))
    for thread, (_, options) in zip(threads, created.values(), strict=True):
        thread.start(replace(start, options=options))
    events.listen(lambda event: _hear(threads, event))
    problem = ""
    try:
        yield
    except BaseException as e:
        problem = one_line(e) or type(e).__name__
        raise
    finally:
        end = End(problem=problem)
        _tell_all(threads, lambda tracker: tracker.on_end(end))
        _finish(threads)


def _create(name: str, settings: dict[str, Any]) -> tuple[Tracker, BaseModel | None]:
    """A tracker and its settings, checked before the run."""
    kind = load(plugins.find(TRACKERS, name))
    options = _options(name, kind, settings)
    try:
        return kind(), options
    except FedncError:
        raise
    except Exception as e:  # a stranger's code may raise anything
        raise ConfigError(f"tracker {name!r} cannot be used here ({type(e).__name__}: {e})") from e


def _options(name: str, kind: type[Tracker], settings: dict[str, Any]) -> BaseModel | None:
    if kind.Options is None:
        if settings:
            raise ConfigError(f"track.{name}: this tracker has no settings; leave out {', '.join(settings)}")
        return None
    try:
        return kind.Options.model_validate(settings)
    except ValidationError as e:
        known = list(kind.Options.model_fields)
        told = explain(e, "the run file", f"track.{name}", known=known)
        raise ConfigError(_without_secrets(told, settings)) from None


def _without_secrets(text: str, settings: Any, key: str = "") -> str:
    """The text without passwords in URLs among the settings, and without settings whose names say secret."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            text = _without_secrets(text, value, name)
    elif isinstance(settings, list):
        for value in settings:
            text = _without_secrets(text, value, key)
    elif isinstance(settings, str) and settings:
        text = text.replace(settings, HIDDEN) if _SECRET.search(key) else without_secrets(text, settings)
    return text


def _primary(run: RunConfig) -> str:
    """Name of the run's primary metric; empty if no tracker needs it, or the task cannot be made."""
    if not (run.server.trackers or run.track):
        return ""
    try:
        return discovery.get(run).primary.name
    except FedncError:  # whoever starts the run reports it
        return ""


def _hear(threads: Sequence[_Thread], event: Event) -> None:
    if threads and isinstance(event, RoundCompleted):
        record = _round_of(event.record)
        _tell_all(threads, lambda tracker: tracker.on_round(record))


def _round_of(record: RoundRecord) -> Round:
    """A copy, because the run may still evaluate its last round while a tracker reads it."""
    return Round(
        round=record.round,
        seconds=record.seconds,
        metrics=dict(record.metrics),
        loss=record.loss,
        examples=record.examples,
        replies=record.replies,
        missing=tuple(record.missing),
        failures=dict(record.failures),
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        spread=dict(record.spread),
        worst={key: float(value) for key, value in record.worst_client.items() if isinstance(value, int | float)},
    )


def _tell_all(threads: Sequence[_Thread], call: Callable[[Tracker], None]) -> None:
    for thread in threads:
        thread.tell(call)


def _finish(threads: Sequence[_Thread]) -> None:
    for thread in threads:
        thread.close(max(_FINISH_S / len(threads), thread.finish_s))


class _Thread:
    """One tracker and its queue of calls. Adding a call never blocks."""

    def __init__(self, name: str, tracker: Tracker, events: EventLog, settings: dict[str, Any]) -> None:
        self._name, self._tracker, self._events = name, tracker, events
        self._settings = settings
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MOST_WAITING)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    @property
    def finish_s(self) -> float:
        """How long this tracker asks the end of a run to wait."""
        return self._tracker.finish_s

    def start(self, start: Start) -> None:
        """Queue the call of `on_start`."""
        self.tell(lambda tracker: tracker.on_start(start))

    def tell(self, call: Callable[[Tracker], None] | None) -> None:
        """Queue a call, or give up the tracker if it lags too far behind. None: no more calls follow."""
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail(f"lags {_MOST_WAITING} rounds behind")

    def close(self, wait_s: float) -> None:
        """Wait up to `wait_s` for the queued calls. The thread is a daemon and keeps no process alive."""
        self.tell(None)
        if not self._failed:
            self._thread.join(wait_s)
            if self._thread.is_alive():
                self._fail(f"has not finished {wait_s:g} s after the run")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call(self._tracker)
            except BaseException as e:  # SystemExit too: whatever a tracker raises, the run goes on
                self._fail(f"failed ({type(e).__name__}: {e})")
                return

    def _fail(self, why: str) -> None:
        self._failed = True
        text = f"tracker {self._name} {_without_secrets(why, self._settings)}; it gets no more of this run"
        self._events.emit(TrackerFailed(text=text, tracker=self._name))
