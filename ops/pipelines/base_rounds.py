"""The state of a run after the rounds before its first session, kept so that a run with other sessions begins
there.

Called by the phases. A continued run has the bits of one that did those rounds itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fednc.common.config.run import RunConfig
from fednc.common.errors import DataError
from fednc.common.files import private_folder
from fednc.server.storage.checkpoint import Checkpoints

CLIENTS = "clients"  # folder of what clients remember between rounds, in the run's folder


def keep(folder: Path, run: RunConfig, base: Path) -> None:
    """Keep the newest checkpoint of the run in `folder` if it is the one before the first session.

    Not if clients remember something between rounds: another run would begin without it.
    """
    if are_kept(base) or any((folder / CLIENTS).rglob("*.safetensors")):
        return
    found = Checkpoints(folder, 0).newest()
    if found is not None and found.round == run.rounds.total and not found.opened:
        private_folder(base)
        Checkpoints(base, keep=1).save(found)


def are_kept(base: Path) -> bool:
    """Whether there is a state to begin with."""
    try:
        return Checkpoints(base, 0).newest() is not None
    except DataError:
        return False


def continue_from(base: Path, run: RunConfig, folder: Path) -> None:
    """Let a new run in `folder` begin with the kept state. Changes nothing if it has begun."""
    if Checkpoints(folder, 0).newest() is None and are_kept(base):
        found = Checkpoints(base, 0).newest()
        assert found is not None
        Checkpoints(folder, keep=1).save(replace(found, config_sha256=run.digest, config=run.decisive()))
