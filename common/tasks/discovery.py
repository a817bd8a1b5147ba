"""Finds installed tasks by name: entry points of group `fednc.tasks`, both fednc's own and other people's.

Knows none of them; imports one when it is asked for by name.
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
    """Names of all installed tasks, including those that do not load."""
    return sorted({plugin.name for plugin in plugins.installed(TASKS)})


def built_in() -> dict[str, type[Task]]:
    """fednc's own task classes by name."""
    return {plugin.name: load(plugin) for plugin in plugins.installed(TASKS) if plugin.is_built_in}


def installed() -> dict[str, type[Task]]:
    """The usable task classes by name; others are logged and left out."""
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
    """The class of task `name`. Raises ConfigError if it is not installed, ambiguous, or does not load."""
    return load(plugins.find(TASKS, name))


def load(plugin: Plugin) -> type[Task]:
    """The class of one plug-in. Raises ConfigError if it cannot be imported or is not a task of that name."""
    loaded = plugin.load()
    where = f"task {plugin.name!r} of {plugin.distribution} {plugin.release}"
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise ConfigError(f"{where}: {plugin.entry_point.value} is not a class that derives from fednc's Task")
    if loaded.name != plugin.name:
        raise ConfigError(
            f"{where}: its class has the name {loaded.name!r}; class and entry point need the same name"
        )
    return loaded


def get(run: RunConfig) -> Task:
    """The task of a run, with checked options."""
    return task_class(run.task.name).for_run(run)
