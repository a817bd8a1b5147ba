"""Installed tasks, by name: every folder of `fednc.tasks` whose `task.py` names its class `TASK`.

The folder has the task's name. Tasks are imported by name only: this floor knows none of them.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.util import find_spec

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks.api import Task

_TASKS = "fednc.tasks"


def names() -> list[str]:
    """Names of the installed tasks."""
    folders = [found.name for found in pkgutil.iter_modules(import_module(_TASKS).__path__) if found.ispkg]
    return sorted(name for name in folders if find_spec(f"{_TASKS}.{name}.task"))


def installed() -> dict[str, type[Task]]:
    """All installed task classes by name."""
    return {name: task_class(name) for name in names()}


def task_class(name: str) -> type[Task]:
    """The class of task `name`. Raises ConfigError where it is not installed."""
    if name not in names():
        raise ConfigError(f"task.name: {name!r} is not installed here; there are: {', '.join(names())}")
    loaded: type[Task] = import_module(f"{_TASKS}.{name}.task").TASK
    return loaded


def get(run: RunConfig) -> Task:
    """The task of a run, its options checked."""
    return task_class(run.task.name)(run)
