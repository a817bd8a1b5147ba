"""Finds the class that describes `[split]` of a run file: the task's own, which may have further tables.

Used by the configuration (`common/config/run.py`) when it reads a run file. Knows no task.
"""

from __future__ import annotations

from pydantic import ConfigDict

from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery


class UnknownSplit(SplitSection):
    """For a task that is not installed: accepts any table. Code that needs the task reports that it is missing."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


def split_section(task: str) -> type[SplitSection]:
    """The class of `[split]` for runs of this task."""
    try:
        return discovery.task_class(task).Split
    except ConfigError:
        return UnknownSplit
