"""Installed tasks, by name: every folder here, whose `task.py` names its class `TASK`. The folder has its name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from fednc.common.config import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks.base import Task


def names() -> list[str]:
    """Names of the installed tasks."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg)


def installed() -> dict[str, type[Task]]:
    """All installed task classes by name."""
    return {name: task_class(name) for name in names()}


def task_class(name: str) -> type[Task]:
    """The class of task `name`. Raises ConfigError where it is not installed."""
    if name not in names():
        raise ConfigError(f"task.name: {name!r} is not installed here; there are: {', '.join(names())}")
    loaded: type[Task] = import_module(f"{__name__}.{name}.task").TASK
    return loaded


def get(run: RunConfig) -> Task:
    """The task of a run, its options checked."""
    return task_class(run.task.name)(run)
