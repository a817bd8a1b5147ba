"""Runs the first rounds of a prepared run, for tests that stop in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fednc.bench.local_grid import LocalGrid
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.events import Event, RoundCompleted


def stop_after(control: RunControl, rounds: int) -> Callable[[Event], None]:
    """A listener that stops the run once so many rounds are completed."""

    def note(event: Event) -> None:
        if isinstance(event, RoundCompleted) and event.record.round >= rounds:
            control.stop()

    return note


def run_until(prepared: FederatedRun, grid: LocalGrid, rounds: int) -> Any:
    """The checkpoint after that many rounds."""
    around = Surroundings(name_of=grid.name_of)
    prepared.events.listen(stop_after(around.control, rounds))
    prepared.execute(grid, around)
    assert prepared.state.completed == rounds
    return prepared.checkpoint(around)
