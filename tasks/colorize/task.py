"""The task: colours for line art after a reference picture, with or without a region head.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.
"""

from __future__ import annotations

from fednc.common.config.run import RunConfig
from fednc.common.tasks.api import Task
from fednc.tasks.colorize.colour_task import ColourTask
from fednc.tasks.colorize.regions import RegionColorizeTask


class ColorizeTask(ColourTask):
    """Colours for line art after a reference picture: two networks, two optimisers, no classes."""

    @classmethod
    def for_run(cls, run: RunConfig) -> Task:
        """This task, or the variant with classes if the run file gives a region head a weight."""
        return RegionColorizeTask(run) if (run.task.model_extra or {}).get("region_weight") else cls(run)
