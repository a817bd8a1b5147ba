"""The point cloud task: clouds with classes, or points with classes if the run file says so.

Found by name through `fednc.common.tasks`.
"""

from __future__ import annotations

from fednc.common.config.run import RunConfig
from fednc.common.tasks.api import Task
from fednc.tasks.pointcloud.cloud_task import CloudTask
from fednc.tasks.pointcloud.point_labels import PointLabelsTask


class PointCloudTask(CloudTask):
    """Classification of clouds."""

    @classmethod
    def for_run(cls, run: RunConfig) -> Task:
        """This task, or the one for points if the run file says `labels = "points"`."""
        return (PointLabelsTask if (run.task.model_extra or {}).get("labels") == "points" else cls)(run)
