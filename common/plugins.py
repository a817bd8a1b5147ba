"""What installed distributions bring: tasks, methods and trackers, found by name among their entry points.

A distribution registers them in its pyproject.toml, fednc its own in the same way:

    [project.entry-points."fednc.tasks"]
    wards = "our_wards:Wards"

The network and the run file only ever say a name. It is looked up here, by exact match, and nothing that is not an
entry point of an installed distribution is imported. Used by the registries of each kind, which check what was
loaded. Knows neither tasks nor methods.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

from fednc.common.errors import ConfigError

TASKS, METHODS, TRACKERS = "fednc.tasks", "fednc.methods", "fednc.trackers"
KINDS = {TASKS: "task", METHODS: "method", TRACKERS: "tracker"}
_KEYS = {
    TASKS: "task.name",
    METHODS: "method.name",
    TRACKERS: "server.trackers",
}  # of the run file, that name them
OURS = "fednc"  # the distribution whose entry points nobody can shadow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution. Nothing of it has been imported."""

    group: str
    name: str
    distribution: str
    release: str  # version of the distribution
    entry_point: EntryPoint

    @property
    def is_built_in(self) -> bool:
        """Whether it came with fednc."""
        return self.distribution == OURS

    @property
    def kind(self) -> str:
        """`task`, `method` or `tracker`."""
        return KINDS[self.group]

    def load(self) -> Any:
        """Import it. Raises ConfigError: whatever its own code raised while it was imported."""
        try:
            return self.entry_point.load()
        except Exception as e:  # a stranger's module may raise anything
            raise ConfigError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.release} cannot be loaded "
                f"({type(e).__name__}: {e}). Install what it needs, or another version of {self.distribution}."
            ) from e


def is_name(name: str) -> bool:
    """Whether a plug-in can be called so."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`name` if a plug-in can have it. Raises ValueError, above all for the path of a module."""
    if not is_name(name):
        raise ValueError(
            f"{name[:80]!r} is not the name of a plug-in: a name has 1 to 64 letters, digits, '-' and '_'. A run "
            "never names a module or a file. Install the distribution that brings it on every machine, and write "
            "the name that `fednc plugins` shows."
        )
    return name


def installed(group: str) -> tuple[Plugin, ...]:
    """All plug-ins of a group, the built-in ones first, then by name. Nothing is imported."""
    return _installed(group, tuple((place, _changed_ns(place)) for place in sys.path))


def _changed_ns(place: str) -> int:
    """When something was installed into a folder of sys.path or removed from it; 0: it is no folder."""
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> tuple[Plugin, ...]:
    """Kept until another folder is on sys.path, or one of them has changed: reading them takes milliseconds."""
    del places
    found = {_plugin(group, entry): None for entry in entry_points(group=group) if _NAME.fullmatch(entry.name)}
    return tuple(sorted(found, key=lambda plugin: (not plugin.is_built_in, plugin.name, plugin.distribution)))


def _plugin(group: str, entry: EntryPoint) -> Plugin:
    assert entry.dist is not None, "entry_points() reads distributions"
    distribution = re.sub(r"[-_.]+", "-", entry.dist.name).lower()
    return Plugin(group, entry.name, distribution, entry.dist.version, entry)


def usable(group: str) -> Iterator[Plugin]:
    """The plug-ins whose name is theirs alone. Nothing is imported."""
    names = [plugin.name for plugin in installed(group)]
    return (plugin for plugin in installed(group) if names.count(plugin.name) == 1)


def conflicts(group: str) -> Iterator[str]:
    """Why a name is not usable, for each that more than one distribution brings."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in installed(group):
        by_name.setdefault(plugin.name, []).append(plugin)
    return (conflict(found) for found in by_name.values() if len(found) > 1)


def find(group: str, name: str) -> Plugin:
    """The one plug-in of that name.

    Raises:
        ConfigError: none is installed, or more than one distribution brings that name.
    """
    key = _KEYS[group]
    try:
        check_name(name)
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from e
    found = [plugin for plugin in installed(group) if plugin.name == name]
    if not found:
        raise ConfigError(f"{key}: {name!r} is not installed here; {_there_are(group)}")
    if len(found) > 1:
        raise ConfigError(f"{key}: {conflict(found)}")
    return found[0]


def conflict(found: list[Plugin]) -> str:
    """Why none of several plug-ins of one name is used, and what to do."""
    first, *others = found
    brought = " and ".join(f"{plugin.distribution} {plugin.release}" for plugin in found)
    removable = " or ".join(other.distribution for other in (others if first.is_built_in else found))
    shadows = "; a plug-in cannot take the name of one of fednc's own" if first.is_built_in else ""
    return (
        f"{first.name!r} comes from {brought}{shadows}. Uninstall {removable}, or rename the {first.kind} in it."
    )


def _there_are(group: str) -> str:
    names = sorted({plugin.name for plugin in installed(group)})
    if not names:
        return (
            f"no {KINDS[group]}s are registered at all. Install fednc again ({OURS} {version(OURS)} has an older "
            "installation here)."
        )
    return f"there are: {', '.join(names)}"
