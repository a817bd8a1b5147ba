"""What a process offers to a run beyond Flower's interface. Given to the run by whoever owns the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fednc.server.aggregation.holdings import Declared
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.global_state import GlobalState
from fednc.server.storage.checkpoint import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a process offers to a run beyond Flower's interface; the defaults serve every grid."""

    name_of: Callable[[int], str] = str
    declared: Callable[[int], Declared | None] = lambda _node: None  # what a node said it holds when it attended
    who_is_there: Callable[[], str] = lambda: ""
    missing_classes: Callable[[], list[str]] = list  # of which no client that is there has an example
    reject: Callable[[int, str], None] = lambda _node, _reason: None  # counts a reply that could not be used
    traffic: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes up, bytes down so far
    parts: Callable[[], Mapping[str, int]] = dict  # part of the split that each client has, by name
    expect_replies: Callable[[GlobalState], None] = lambda _state: None  # called when clients' replies change form
    checkpoints: Checkpoints | None = None
    control: RunControl = field(default_factory=RunControl)
    returning: int = 0  # clients that took part before a restart and are given time to come back
