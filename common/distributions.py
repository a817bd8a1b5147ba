"""Which code made a model: name, version, licence and hash of fednc and of the plug-ins that a run uses.

Recorded in a run's summary. A hash tells apart two builds with the same version number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fednc.common import plugins, versions
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.peer_text import one_line
from fednc.common.plugins import KINDS, METHODS, OURS, TASKS, TRACKERS, Plugin

_MOST_LICENCE = 200  # characters
_FLOORS = ("common", "server", "client", "tasks", "protos")  # what a run executes


def distributions_of(run: RunConfig) -> list[dict[str, Any]]:
    """Name, version, code_sha256, licence and what the run uses of each distribution; fednc first."""
    found: dict[str, dict[str, Any]] = {
        OURS: {
            "name": OURS,
            "version": versions.package(),
            "code_sha256": _our_code(),
            "licence": licence_of(OURS),
            "provides": [],
        }
    }
    for group, name in named_by(run):
        plugin = _plugin(group, name)
        place = plugin.distribution if plugin else OURS
        if plugin and place not in found:
            found[place] = {
                "name": place,
                "version": plugin.release,
                "code_sha256": code_of(plugin),
                "licence": licence_of(plugin.distribution),
                "provides": [],
            }
        found[place]["provides"].append(f"{KINDS[group]} {name}")
    return list(found.values())


def named_by(run: RunConfig) -> list[tuple[str, str]]:
    """(group, name) of everything in a run file that is looked up among entry points, each once.

    The only list of such keys: lineage and quarantine go by it, and a key that is not in it escapes both.
    """
    trackers = [(TRACKERS, name) for name in (*run.server.trackers, *run.track)]
    step = [(METHODS, run.method.server_step)] if run.method.server_step else []
    return list(dict.fromkeys([(TASKS, run.task.name), (METHODS, run.method.name), *step, *trackers]))


def _plugin(group: str, name: str) -> Plugin | None:
    """None: it was registered in this process only, or a tracker is not installed where this is asked."""
    if group == METHODS:
        return registry.plugin_of(name)
    try:
        return plugins.find(group, name)
    except ConfigError:
        return None


def code_of(plugin: Plugin) -> str:
    """Digest over the Python files of the distribution that a plug-in comes from, as far as they can be found."""
    if plugin.is_built_in:
        return _our_code()
    own = plugin.entry_point.module.partition(".")[0]
    others = {
        name for name, places in packages_distributions().items() if plugin.distribution in map(_normal, places)
    }
    digests = [code_sha256(module) for module in sorted({own, *others})]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def licence_of(distribution: str) -> str:
    """The licence that a distribution declares, in one line; "" if none."""
    try:
        told = metadata(distribution)
    except PackageNotFoundError:
        return ""
    classified = [
        line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or () if line.startswith("License")
    ]
    named = [value for key in ("License-Expression", "License") for value in told.get_all(key) or ()]
    return one_line((*named, ", ".join(classified))[0].partition("\n")[0], _MOST_LICENCE)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def _our_code() -> str:
    """Read once: it is large, and does not change while the process runs. A plug-in may be installed anew."""
    return code_sha256(OURS)


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
