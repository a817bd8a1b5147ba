"""Runs the first rounds of a prepared run, for tests that stop in the middle."""

from __future__ import annotations

from typing import Any

from fednc.bench.local_grid import LocalGrid
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun


def run_until(prepared: FederatedRun, grid: LocalGrid, rounds: int) -> Any:
    """The checkpoint after that many rounds."""
    around = Surroundings(name_of=grid.name_of)
    prepared._events.listen(lambda e: setattr(around.control, "stopping", e.get("round") == rounds))
    prepared.execute(grid, around)
    assert prepared.state.completed == rounds
    return prepared._checkpoint()
