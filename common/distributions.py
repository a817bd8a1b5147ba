"""Which code made a model: name, version and hash of fednc and of the plug-ins that a run uses.

Recorded in a run's summary. A hash tells apart two builds with the same version number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fednc.common import plugins, versions
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.plugins import OURS, TASKS, Plugin

_FLOORS = ("common", "server", "client", "tasks", "protos")  # what a run executes


def distributions_of(run: RunConfig) -> list[dict[str, Any]]:
    """Name, version, code_sha256 and what the run uses of each distribution; fednc first."""
    found: dict[str, dict[str, Any]] = {
        OURS: {"name": OURS, "version": versions.package(), "code_sha256": code_sha256(OURS), "provides": []}
    }
    used = {"task": _task_plugin(run.task.name), "method": registry.plugin_of(run.method.name)}
    names = {"task": run.task.name, "method": run.method.name}
    for kind, plugin in used.items():
        place = plugin.distribution if plugin else OURS
        if plugin and place not in found:
            module = plugin.entry_point.module.partition(".")[0]
            found[place] = {
                "name": place,
                "version": plugin.release,
                "code_sha256": code_sha256(module),
                "provides": [],
            }
        found[place]["provides"].append(f"{kind} {names[kind]}")
    return list(found.values())


def _task_plugin(name: str) -> Plugin | None:
    try:
        return plugins.find(TASKS, name)
    except ConfigError:
        return None  # registered in this process only


@cache
def code_sha256(module: str) -> str:
    """Digest over the Python files of an installed top-level module; "" if it has none."""
    digest, empty = hashlib.sha256(), True
    for name, path in sorted(_files_of(module)):
        content = path.read_bytes()
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(content), content))
        empty = False
    return "" if empty else digest.hexdigest()


def _files_of(module: str) -> Iterator[tuple[str, Path]]:
    if module == OURS:  # an editable installation has its floors in folders of their own
        for floor in _FLOORS:
            yield from ((f"{floor}/{name}", path) for name, path in _files_of(f"{OURS}.{floor}"))
        return
    spec = find_spec(module)
    if spec is None:
        return
    for place in spec.submodule_search_locations or ():
        for path in Path(place).rglob("*.py"):
            yield path.relative_to(place).as_posix(), path
    if not spec.submodule_search_locations and spec.origin and spec.origin.endswith(".py"):
        yield Path(spec.origin).name, Path(spec.origin)
