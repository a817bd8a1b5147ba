"""Installed tasks by name: entry points of group `fednc.tasks`, of fednc itself and of other distributions alike.

This floor knows none of them, and imports one when it is asked for by name.
"""

from __future__ import annotations

import logging

from fednc.common import plugins
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.plugins import TASKS, Plugin
from fednc.common.tasks.api import Task

log = logging.getLogger("fednc")


def names() -> list[str]:
    """Names of the installed tasks, those that do not load included."""
    return sorted({plugin.name for plugin in plugins.installed(TASKS)})


def built_in() -> dict[str, type[Task]]:
    """fednc's own task classes by name."""
    return {plugin.name: load(plugin) for plugin in plugins.installed(TASKS) if plugin.is_built_in}


def installed() -> dict[str, type[Task]]:
    """The task classes that can be used here, by name; what cannot be used is logged and left out."""
    for conflict in plugins.conflicts(TASKS):
        log.warning("task %s", conflict)
    found = {}
    for plugin in plugins.usable(TASKS):
        try:
            found[plugin.name] = load(plugin)
        except ConfigError as e:
            log.warning("%s", e)
    return found


def task_class(name: str) -> type[Task]:
    """The class of task `name`. Raises ConfigError: not installed, of two distributions, or not to be loaded."""
    return load(plugins.find(TASKS, name))


def load(plugin: Plugin) -> type[Task]:
    """The class of one plug-in. Raises ConfigError where it cannot be imported or is no task of that name."""
    loaded = plugin.load()
    where = f"task {plugin.name!r} of {plugin.distribution} {plugin.release}"
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise ConfigError(f"{where}: {plugin.entry_point.value} is not a class that derives from fednc's Task")
    if loaded.name != plugin.name:
        raise ConfigError(f"{where}: its class calls itself {loaded.name!r}; name and entry point must be equal")
    return loaded


def get(run: RunConfig) -> Task:
    """The task of a run, its options checked."""
    return task_class(run.task.name)(run)
