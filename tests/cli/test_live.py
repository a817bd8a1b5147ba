"""The live view of rounds, clients and classes, on a terminal and without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from fednc.cli.live import RunView
from fednc.common.config.run import parse_run
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import NodeState
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ModelInitialised, RoundCompleted
from fednc.server.storage.history import RoundRecord

ROUND = RoundRecord(
    round=3,
    loss=0.25,
    replies=2,
    seconds=1.5,
    test={"accuracy": 0.914, "accuracy/cat": 0.9, "accuracy/dog": 0.5},
    pooled={"accuracy": 0.873, "accuracy/cat": 0.8},
    worst_client={"name": "edge-1", "accuracy": 0.641},
)


def screen(view: RunView) -> str:
    console = Console(width=160, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


@pytest.fixture
def view(tmp_path):
    run = parse_run({"task": {"classes": ["cat", "dog"]}, "rounds": {"total": 5}})
    events = EventLog()
    view, federation = RunView(run), Federation("live", run, tmp_path / "spool", events)
    events.listen(view.note)
    node = federation.roster.admit("edge-1", b"12345678", None)
    node.state, node.examples = NodeState.READY, 404
    view.watch(federation, 0)
    return view, events


def test_rounds_show_test_held_out_and_worst_client(view):
    view, events = view
    assert "by class" not in screen(view)
    events.emit(RoundCompleted(text="round 3/5", record=ROUND))
    shown = screen(view)
    for expected in ("91.4%", "87.3%", "edge-1 64.1%", "cat 90%, dog 50%", "1 of 5"):
        assert expected in shown


def test_without_test_data_accuracy_by_class_is_from_the_clients(view):
    view, events = view
    events.emit(RoundCompleted(text="round 3/5", record=replace(ROUND, test={})))
    assert "cat 80%" in screen(view)


def test_clients_are_listed_with_their_state(view):
    view, _ = view
    shown = screen(view)
    assert "edge-1" in shown
    assert "ready" in shown
    assert "404" in shown


def test_the_result_of_the_initialisation_stays_visible(view):
    view, events = view
    assert "gradient cosine" not in screen(view)
    events.emit(
        ModelInitialised(
            text="initialisation nio-exact: gradient cosine -0.3 -> 0.4",
            initialiser="nio-exact",
            used=True,
            before={},
            learnt={},
            after={},
            steps={},
            scales={},
            seconds=0.1,
        )
    )
    events.emit(RoundCompleted(text="round 3/5", record=ROUND))
    assert "gradient cosine -0.3 -> 0.4" in screen(view)
