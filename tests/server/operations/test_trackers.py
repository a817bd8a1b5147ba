"""Trackers are told about every round, each in its own thread, and the run goes on whatever they do."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.trackers import End, Round, Start, Tracker
from fednc.server.operations import trackers
from fednc.server.operations.trackers import tracked
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted, TrackerFailed
from fednc.server.storage.history import RoundRecord
from support.installed_plugins import Site, site

__all__ = ["site"]

SOURCE = """
from fednc.common.trackers import Tracker

class Board(Tracker):
    def on_start(self, start):
        {on_start}
    def on_round(self, record):
        {on_round}
    def on_end(self, end):
        {on_end}
"""


def install(site: Site, name: str, **does: str) -> None:
    nothing = {"on_start": "pass", "on_round": "pass", "on_end": "pass"}
    site.install(f"{name}-tracker", {"fednc.trackers": {name: "{}:Board"}}, SOURCE.format(**{**nothing, **does}))


def run_with(*names: str) -> Any:
    return parse_run({"server": {"trackers": list(names)}})


def emit(events: EventLog, number: int, **fields: Any) -> None:
    record = RoundRecord(round=number, seconds=0.5, loss=1.0 / number, **fields)
    events.emit(RoundCompleted(text=f"round {number}", record=record))


def listened() -> tuple[EventLog, list[Event]]:
    events, heard = EventLog(), list[Event]()
    events.listen(heard.append)
    return events, heard


def told(heard: list[Event]) -> list[str]:
    return [event.text for event in heard if isinstance(event, TrackerFailed)]


def test_a_tracker_hears_start_rounds_and_end_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[Any] = []

    class Board(Tracker):
        def __init__(self) -> None:
            self.thread = threading.current_thread()

        def on_start(self, start: Start) -> None:
            heard.append(start)

        def on_round(self, record: Round) -> None:
            assert threading.current_thread() is not self.thread
            heard.append(record)

        def on_end(self, end: End) -> None:
            heard.append(end)

    monkeypatch.setattr(trackers, "load", lambda plugin: Board)
    run, (events, _) = run_with("csv"), listened()
    with tracked(run, "run-1", tmp_path, events):
        emit(events, 1, test={"accuracy": 0.5}, pooled={"accuracy": 0.1}, missing=["bert"])
        emit(events, 2, pooled={"accuracy": 0.75}, failures={"bert": "data: x"}, bytes_up=7)
        emit(events, 3)
    start, first, second, third, end = heard
    assert (start.run_id, start.folder, start.digest) == ("run-1", tmp_path, run.digest)
    assert start.config["seed"] == run.seed
    assert "server" not in start.config
    assert (first.round, first.loss, first.metrics, first.missing) == (1, 1.0, {"accuracy": 0.5}, ("bert",))
    assert (second.metrics, second.failures, second.bytes_up) == ({"accuracy": 0.75}, {"bert": "data: x"}, 7)
    assert third.metrics == {}
    assert end.problem == ""


def test_a_run_that_fails_says_so_to_its_trackers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ends: list[End] = []

    class Board(Tracker):
        def on_end(self, end: End) -> None:
            ends.append(end)

    monkeypatch.setattr(trackers, "load", lambda plugin: Board)
    with pytest.raises(RuntimeError), tracked(run_with("csv"), "r", tmp_path, EventLog()):
        raise RuntimeError("out of\nluck")
    assert [end.problem for end in ends] == ["out of luck"]


@pytest.mark.parametrize("place", ["on_start", "on_round", "on_end"])
@pytest.mark.parametrize("raised", ["ValueError('no')", "SystemExit(3)", "KeyboardInterrupt"])
def test_a_tracker_that_fails_is_left_out_and_harms_nothing(
    place: str, raised: str, site: Site, tmp_path: Path
) -> None:
    install(site, "bad", **{place: f"raise {raised}"})
    events, heard = listened()
    with tracked(run_with("bad", "csv"), "r", tmp_path, events):
        for number in (1, 2, 3):
            emit(events, number)
    assert len(told(heard)) == 1
    assert told(heard)[0].startswith(f"tracker bad failed ({raised.partition('(')[0]}")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows if row["metric"] == "loss in training"] == ["1.0", "0.5", str(1 / 3)]


SECRETS = {
    "uri": "postgresql://ann:k3y@db.example/runs",
    "api_token": "t0k3n",
    "also": {"mirrors": ["https://bob:0th3r@mirror.example"]},
}


def test_the_password_of_a_store_is_not_in_the_message_of_a_tracker_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Options(BaseModel):
        uri: str
        api_token: str
        also: dict[str, list[str]]

    class Board(Tracker):
        def on_start(self, start: Start) -> None:
            raise OSError(f"no route with {start.options}")

    Board.Options = Options
    monkeypatch.setattr(trackers, "load", lambda plugin: Board)
    events, heard = listened()
    with tracked(parse_run({"track": {"csv": SECRETS}}), "r", tmp_path, events):
        pass
    with (
        pytest.raises(ConfigError) as wrong,
        tracked(parse_run({"track": {"csv": {**SECRETS, "api_token": ["t0k3n"]}}}), "r", tmp_path, events),
    ):
        pass
    (text,) = told(heard)
    assert "db.example" in text
    assert not [
        secret for secret in ("k3y", "t0k3n", "0th3r") for said in (text, str(wrong.value)) if secret in said
    ]


def test_a_tracker_that_is_stuck_holds_up_neither_rounds_nor_the_end(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_FINISH_S", 0.2)
    monkeypatch.setattr(trackers, "_MOST_WAITING", 5)
    install(site, "stuck", on_round="import threading; threading.Event().wait()")
    events, heard = listened()
    started = time.monotonic()
    with tracked(run_with("stuck"), "r", tmp_path, events):
        emit(events, 1)
        emit(events, 2)
    assert time.monotonic() - started < 2
    assert ["has not finished" in text for text in told(heard)] == [True]
    heard.clear()
    with tracked(run_with("stuck"), "r", tmp_path, events):
        for number in range(1, 20):
            emit(events, number)
    assert ["lags 5 rounds behind" in text for text in told(heard)] == [True]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Board = 3", "not a class that derives from fednc's Tracker"),
        ("import not_there_at_all", "ModuleNotFoundError"),
        (
            "from fednc.common.trackers import Tracker\n"
            "class Board(Tracker):\n    def __init__(self): raise OSError('no')",
            "cannot be used here",
        ),
    ],
)
def test_a_tracker_that_cannot_be_loaded_is_reported_before_the_run(
    source: str, words: str, site: Site, tmp_path: Path
) -> None:
    site.install("bad-tracker", {"fednc.trackers": {"bad": "{}:Board"}}, source)
    with pytest.raises(ConfigError, match=words), tracked(run_with("bad"), "r", tmp_path, EventLog()):
        pass


def test_a_tracker_that_is_not_installed_is_an_error() -> None:
    with (
        pytest.raises(
            ConfigError, match=r"server\.trackers or \[track\]: 'board' is not installed here; available: csv"
        ),
        tracked(run_with("board"), "r", None, EventLog()),
    ):
        pass
    with pytest.raises(ConfigError, match="never names a module"):
        run_with("pkg.mod:Class")


def test_csv_goes_on_in_its_file_and_keeps_it_private(tmp_path: Path) -> None:
    for numbers in ((1, 2), (3,)):
        events = EventLog()
        with tracked(run_with("csv"), "r", tmp_path, events):
            for number in numbers:
                emit(events, number, test={"accuracy": number / 10, "accuracy/a, b": 1.0})
    path = tmp_path / "metrics.csv"
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows if row["metric"] == "accuracy"] == ["0.1", "0.2", "0.3"]
    assert [row["round"] for row in rows if row["metric"] == "accuracy/a, b"] == ["1", "2", "3"]
