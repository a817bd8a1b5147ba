"""Installed plug-ins: tasks, methods and trackers, found by name among the entry points of distributions.

A distribution registers them in its pyproject.toml; fednc registers its own in the same way:

    [project.entry-points."fednc.tasks"]
    wards = "our_wards:Wards"

The network and the run file only give a name. It is looked up here by exact match, and only entry points of
installed distributions are imported. Used by the registry of each kind, which checks the loaded object. Knows
neither tasks nor methods.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

from fednc.common.errors import ConfigError

TASKS, METHODS, TRACKERS = "fednc.tasks", "fednc.methods", "fednc.trackers"
KINDS = {TASKS: "task", METHODS: "method", TRACKERS: "tracker"}
# Keys of the run file that name a plug-in.
_KEYS = {TASKS: "task.name", METHODS: "method.name", TRACKERS: "server.trackers or [track]"}
OURS = "fednc"  # no other distribution can replace the entry points of this one

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ALLOWED: dict[str, frozenset[str]] = {}  # by group: the only plug-ins that this process imports; empty: all


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution. Its code has not been imported."""

    group: str
    name: str
    distribution: str
    release: str  # the distribution's version
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
        """Import it. Raises ConfigError if it is not allowed here, and for any error of its own code."""
        allowed = _ALLOWED.get(self.group)
        if allowed and self.name not in allowed:
            raise ConfigError(
                f"{self.kind} {self.name!r} is not allowed here; allowed: {', '.join(sorted(allowed))}"
            )
        try:
            return self.entry_point.load()
        except Exception as e:  # other people's code may raise anything
            raise ConfigError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.release} cannot be loaded "
                f"({type(e).__name__}: {e}). Install what it needs, or another version of {self.distribution}."
            ) from e


@contextmanager
def allowing_only(group: str, names: Collection[str]) -> Iterator[None]:
    """Within the block this process imports no other plug-in of the group. No names: it may import all.

    A run file that a server sends may need the code of its task before anything else can judge it, for instance to
    check the task's own keys of `[split]`. So the limit is here, where code is imported.
    """
    before = _ALLOWED.get(group, frozenset())
    _ALLOWED[group] = frozenset(names)
    try:
        yield
    finally:
        _ALLOWED[group] = before


def is_name(name: str) -> bool:
    """Whether `name` is a valid name of a plug-in."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`name`, if it is a valid name of a plug-in. Raises ValueError, in particular for the path of a module."""
    if not is_name(name):
        raise ValueError(
            f"{name[:80]!r} is not the name of a plug-in: a name has 1 to 64 letters, digits, '-' and '_'. A run "
            "never names a module or a file. Install the distribution with the plug-in on every machine, and use "
            "the name that `fednc plugins` shows."
        )
    return name


def installed(group: str) -> tuple[Plugin, ...]:
    """All plug-ins of a group, built-in ones first, then by name. Imports none of them."""
    return _installed(group, tuple((place, _changed_ns(place)) for place in sys.path))


def _changed_ns(place: str) -> int:
    """When something was last installed into a folder of sys.path or removed from it; 0: not a folder."""
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> tuple[Plugin, ...]:
    """Cached until sys.path or one of its folders changes, because reading entry points takes milliseconds."""
    del places
    found = {_plugin(group, entry): None for entry in entry_points(group=group) if _NAME.fullmatch(entry.name)}
    return tuple(sorted(found, key=lambda plugin: (not plugin.is_built_in, plugin.name, plugin.distribution)))


def _plugin(group: str, entry: EntryPoint) -> Plugin:
    assert entry.dist is not None, "entry_points() reads distributions"
    distribution = re.sub(r"[-_.]+", "-", entry.dist.name).lower()
    return Plugin(group, entry.name, distribution, entry.dist.version, entry)


def usable(group: str) -> Iterator[Plugin]:
    """The plug-ins whose name only one distribution uses. Imports none of them."""
    names = [plugin.name for plugin in installed(group)]
    return (plugin for plugin in installed(group) if names.count(plugin.name) == 1)


def conflicts(group: str) -> Iterator[str]:
    """For each name that more than one distribution uses: why it cannot be used."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in installed(group):
        by_name.setdefault(plugin.name, []).append(plugin)
    return (conflict(found) for found in by_name.values() if len(found) > 1)


def find(group: str, name: str) -> Plugin:
    """The one plug-in of that name.

    Raises:
        ConfigError: none is installed, or more than one distribution uses that name.
    """
    key = _KEYS[group]
    try:
        check_name(name)
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from e
    found = [plugin for plugin in installed(group) if plugin.name == name]
    if not found:
        raise ConfigError(f"{key}: {name!r} is not installed here; {_installed_names(group)}")
    if len(found) > 1:
        raise ConfigError(f"{key}: {conflict(found)}")
    return found[0]


def conflict(found: list[Plugin]) -> str:
    """Why none of several plug-ins with the same name is used, and what to do."""
    first, *others = found
    brought = " and ".join(f"{plugin.distribution} {plugin.release}" for plugin in found)
    removable = " or ".join(other.distribution for other in (others if first.is_built_in else found))
    shadows = "; a plug-in cannot use the name of a built-in one" if first.is_built_in else ""
    return f"{first.name!r} comes from {brought}{shadows}. Uninstall {removable}, or rename its {first.kind}."


def _installed_names(group: str) -> str:
    names = sorted({plugin.name for plugin in installed(group)})
    if not names:
        return (
            f"no {KINDS[group]}s are registered at all. Install fednc again: the installation of {OURS} "
            f"{version(OURS)} here is out of date."
        )
    return f"available: {', '.join(names)}"
