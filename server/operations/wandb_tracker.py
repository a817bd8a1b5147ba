"""The tracker `wandb`: a Weights & Biases run, offline unless the run file says otherwise. Extra `wandb`.

Offline runs lie in the run's folder; `wandb sync` uploads them when the operator wants that. Code, host, hardware
and console output are not recorded, and W&B's own error reports are off.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fednc.common.config.tables import Section
from fednc.common.errors import MissingExtraError
from fednc.common.files import private_folder
from fednc.common.trackers import End, Round, Start, Tracker
from fednc.server.operations.told_rounds import ToldRounds
from fednc.server.operations.tracked_values import values_of


class WandbOptions(Section):
    """`[track.wandb]`."""

    project: str = Field("fednc", description="project that the run belongs to", min_length=1)
    entity: str = Field("", description="user or team; empty: the default of the account")
    mode: Literal["offline", "online"] = Field(
        "offline", description="`offline` never connects; `online` sends everything to W&B as it happens"
    )


class WandbTracker(Tracker):
    """Logs every number of every round."""

    Options = WandbOptions
    finish_s = 20.0

    def __init__(self) -> None:
        self._told, self._primary = ToldRounds("wandb"), ""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:  # now, because importing it in a thread would slow down the first round
            import wandb  # noqa: F401
        except ImportError as e:
            raise MissingExtraError("wandb", "wandb", "the tracker wandb") from e
        self._run: Any = None

    def on_start(self, start: Start) -> None:
        """Begin a run, or another part of the same run after a restart: its id stays."""
        options = start.options
        assert isinstance(options, WandbOptions)
        self._told.open(start.folder)
        self._primary = start.primary
        assert start.folder is not None
        if not self._told.run:
            self._told.note(run=uuid.uuid4().hex[:16])
        import wandb

        private_folder(start.folder / "wandb")
        _wait_for_a_new_second(start.folder / "wandb")
        self._run = wandb.init(
            id=self._told.run,
            resume="allow",
            project=options.project,
            entity=options.entity or None,
            name=start.run_id,
            config=start.config,
            dir=str(start.folder),
            mode=options.mode,
            settings=_settings(wandb),
        )

    def on_round(self, record: Round) -> None:
        """Log the round as one step."""
        if self._told.is_new(record.round):
            self._run.log(values_of(record, self._primary), step=record.round, commit=True)
            self._told.note(number=record.round)

    def on_end(self, end: End) -> None:
        """Write what is left."""
        if end.problem:
            self._run.summary["problem"] = end.problem
        self._run.finish(exit_code=1 if end.problem else 0)


def _wait_for_a_new_second(folder: Path) -> None:
    """W&B names a part of a run by the second of its start, and would replace one of the same second."""
    while any(f"-{time.strftime('%Y%m%d_%H%M%S')}-" in path.name for path in folder.iterdir()):
        time.sleep(0.1)


def _settings(wandb: Any) -> Any:
    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
