"""Installed tasks, by name. A new task is a folder here and one line in `_INSTALLED`."""

from __future__ import annotations

from importlib import import_module

from fednc.common.config import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks.base import Task

_INSTALLED = {"image": "fednc.common.tasks.image.task:ImageTask"}


def installed() -> dict[str, type[Task]]:
    """All installed task classes by name."""
    return {name: task_class(name) for name in _INSTALLED}


def task_class(name: str) -> type[Task]:
    """The class of task `name`. Raises ConfigError where it is not installed."""
    if name not in _INSTALLED:
        raise ConfigError(f"task.name: {name!r} is not installed here; there are: {', '.join(_INSTALLED)}")
    module, attribute = _INSTALLED[name].split(":")
    loaded: type[Task] = getattr(import_module(module), attribute)
    return loaded


def get(run: RunConfig) -> Task:
    """The task of a run, its options checked."""
    return task_class(run.task.name)(run)
