"""The task of several dense tasks as a whole: contract, runs, who owns what, what is said of bad data."""

from __future__ import annotations

from typing import ClassVar

from fednc.testing import TaskContract

CLASSES = ("wall", "floor", "disc", "square")
SMALL = {"classes": list(CLASSES), "size": [16, 16], "width": 8, "channels_each": 8, "memory_pixels": 64}
DATA = "scenes:images=12,test=6,objects=2"


class TestAllTasks(TaskContract):
    task = "multitask"
    data = DATA
    options: ClassVar = {
        **SMALL,
        "tasks": ["segmentation", "parts", "saliency", "normals", "depth", "edges"],
        "interaction": "token",
    }
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fednc"}, "train": {"batch": 4}}


class TestWithoutClasses(TaskContract):
    task = "multitask"
    data = DATA
    options: ClassVar = {"tasks": ["depth", "edges"], "size": [16, 16], "width": 8, "channels_each": 8}
    tables: ClassVar = {"method": {"name": "fedavg"}, "train": {"batch": 4}}
