"""What the process that owns the grid provides to a run, beyond Flower's interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fednc.server.aggregation.holdings import Declared
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.global_state import GlobalState
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.client_metrics import ClientMetrics


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Callbacks and objects that a run needs beyond Flower's interface. The defaults work with any grid."""

    name_of: Callable[[int], str] = str
    declared: Callable[[int], Declared | None] = lambda _node: None  # what a node declared when it attended
    who_is_there: Callable[[], str] = lambda: ""
    missing_classes: Callable[[], list[str]] = list  # classes of which no connected client has an example
    reject: Callable[[int, str], None] = lambda _node, _reason: None  # counts an invalid reply against its node
    # The same for values that are not finite or out of bounds, where most nodes sent good ones; None: as `reject`.
    reject_values: Callable[[int, str], None] | None = None
    traffic: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes up, bytes down so far
    parts: Callable[[], Mapping[str, int]] = dict  # part of the split that each client has, by name
    expect_replies: Callable[[GlobalState], None] = lambda _state: None  # called when clients' replies change form
    keep_examples: Callable[[int, Mapping[str, bytes]], None] | None = None  # example files of a round, by name
    keep_probe: Callable[[Mapping[str, Any]], None] = lambda _verdict: None  # records what the probe said
    has_operator: bool = False  # somebody may resume a paused run
    checkpoints: Checkpoints | None = None
    best: Checkpoints | None = None  # the model of the best round, for `rounds.keep`
    client_metrics: ClientMetrics = field(default_factory=ClientMetrics)
    control: RunControl = field(default_factory=RunControl)
    returning: int = 0  # clients that took part before a restart and get time to come back
