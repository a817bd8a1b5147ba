"""Events: every kind survives its line of JSON, and the lines are those that users parse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.errors import DataError
from fednc.common.peer_text import one_line
from fednc.server.storage import events
from fednc.server.storage.event_log import EventLog, NodeEvents, read_events
from fednc.server.storage.events import KINDS, Event, event_of
from fednc.server.storage.history import RoundRecord

# What users parse: each kind, and its fields beside at, elapsed_s, kind and text. None of them may ever change.
FIELDS = {
    "absent": "node rounds",
    "app": "clients",
    "attend": "node",
    "best": "round",
    "best-lost": "",
    "calibrated": "clients examples temperature",
    "capped": "node claimed counted",
    "changed": "round changed",
    "confidence": "",
    "control": "command operator classes",
    "credentials": "",
    "data": "",
    "data-sums": "answered withheld",
    "disk": "node errno",
    "done": "folder model",
    "drift": "node round times chance cosine classes",
    "drift-over": "node round",
    "drop": "node",
    "dropped-reply": "node size",
    "early-stop": "best round",
    "evaluated": "record",  # whose fields stand among the others
    "failure": "node failure",
    "init": "initialiser used before learnt after steps scales seconds",
    "insecure": "",
    "judged-by-test": "",
    "kept": "round folder",
    "leaving": "node",
    "listening": "port auth metrics_port",
    "lost": "node",
    "manifest": "node",
    "missing-classes": "classes",
    "no-data-sums": "answered withheld",
    "no-memory": "classes",
    "no-probe": "answered withheld",
    "no-reply": "node reason",
    "not-calibrated": "",
    "old-memory": "round classes",
    "other-code": "node code",
    "outlier": "node times done",
    "paused": "node",
    "personal": "answered withheld",
    "probe": "answered withheld family value config verdict",
    "probe-begins": "candidates steps seeds",
    "probe-waits": "family value",
    "put-back": "node reason",
    "quarantine": "node reason",
    "readmit": "node operator",
    "ready": "node examples class_counts pid device",
    "refused": "peer reason status method unsaid",
    "rejected": "node call field",
    "resume": "round",
    "robust": "updates",
    "round": "record fold_s",
    "session": "session classes",
    "session-waits": "session",
    "start": "method frame config metric",
    "stop": "round",
    "too-large": "node",
    "tracker": "tracker",
    "turned-away": "node problem",
    "unfit": "node problem",
    "waiting": "session",
    "weights": "sha256",
}


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY_DICT = st.dictionaries(st.text(), JSON | st.lists(JSON), max_size=3)
# Fields that hold any plain values, which hypothesis cannot draw from the type.
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text().map(one_line),
    "changed": st.dictionaries(st.text(), st.lists(JSON), max_size=3),
    **dict.fromkeys(["verdict", "metric", "before", "learnt", "after", "worst_client", "init"], ANY_DICT),
}


def drawn(cls: type[Any]) -> st.SearchStrategy[Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    given_ = {name: strategy for name, strategy in DRAWN.items() if name in names}
    if "record" in names:
        given_["record"] = drawn(RoundRecord)
    return st.builds(cls, **given_)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(data=st.data())
def test_every_event_is_the_same_after_its_line(data: st.DataObject, kind: str) -> None:
    event = data.draw(drawn(KINDS[kind]))
    line = json.dumps({"at": 1.0, "elapsed_s": 0.5, "kind": kind, **event.fields()})
    assert repr(event_of(json.loads(line))) == repr(event)  # NaN is not equal to itself


def test_kinds_and_fields_are_those_that_users_parse() -> None:
    found = {kind: {field.name for field in dataclasses.fields(cls)} - {"text"} for kind, cls in KINDS.items()}
    for kind in found.keys() - {"refused"}:
        found[kind] -= {"unsaid"}  # any event of a node may have it
    assert found == {kind: set(names.split()) for kind, names in FIELDS.items()}


def test_every_class_that_can_be_recorded_has_a_kind() -> None:
    classes = {cls for cls in vars(events).values() if isinstance(cls, type) and issubclass(cls, Event)}
    bases = {base for cls in classes for base in cls.__mro__[1:]}
    assert {cls for cls in classes - bases if not cls.kind} == set()
    assert {cls.kind for cls in classes if cls.kind} == KINDS.keys()


def test_a_kind_cannot_be_taken_twice() -> None:
    with pytest.raises(AssertionError, match="two events of kind 'lost'"):
        type("AnotherLoss", (Event,), {}, kind="lost")


def test_an_event_is_written_with_its_time_and_read_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", file_mib=0, kept_files=3)  # a file for each event
    told: list[Event] = [
        events.NodeLost(text="anna is gone", node="anna"),
        events.RoundCompleted(text="", record=RoundRecord(round=3, test={"accuracy": 0.5}), fold_s=0.25),
        events.DiskProblem(text="full"),
    ]
    for event in told:
        log.emit(event)
    log.close()
    assert len(list(tmp_path.iterdir())) == len(told)
    assert list(read_events(tmp_path)) == told
    line: dict[str, Any] = json.loads((tmp_path / "events.jsonl").read_text())
    assert list(line) == ["at", "elapsed_s", "kind", "text"], "what is not known is left out"


def test_lines_of_older_and_newer_versions_can_be_read() -> None:
    assert event_of({"kind": "of-a-newer-version", "text": ""}) is None
    old = event_of({"kind": "round", "text": "round 1", "round": 1, "replies": 2, "loss": None})
    assert isinstance(old, events.RoundCompleted)
    assert (old.record.replies, old.record.loss, old.fold_s) == (2, None, 0)
    newer = event_of({"kind": "lost", "text": "", "node": "anna", "not_known_here": 1})
    assert newer == events.NodeLost(text="", node="anna")


@pytest.mark.parametrize("values", [{"text": ""}, {"text": "", "node": []}, {"node": "anna"}])
def test_a_damaged_line_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="an event of kind 'lost' is damaged"):
        event_of({"kind": "lost", **values})


def test_events_left_out_are_counted_in_the_next_event() -> None:
    heard: list[Event] = []
    log = EventLog()
    log.listen(heard.append)
    restrained = NodeEvents(log, at_once=1, per_s=1e9)
    restrained.emit(events.NodeLost(text="x" * 2000, node="anna"))
    assert heard[-1].fields() == {"text": "x" * 2000, "node": "anna"}
