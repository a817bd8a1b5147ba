"""Finds methods by name: entry points of group `fednc.methods`, both fednc's own and other people's.

    registry.get("mine")                      # its class, which derives from `api.Method` and has `name = "mine"`
    registry.installed()                      # all classes by name, fednc's own first
    registry.register("mine", lambda: Mine)   # only in this process, for a notebook or a script

Used by the configuration, by both sides of a run and by the pages that list methods. A method is loaded when it is
first needed, so importing this file does not import PyTorch. Knows methods only by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from fednc.common import plugins
from fednc.common.errors import ConfigError
from fednc.common.plugins import METHODS, Plugin, is_name

if TYPE_CHECKING:
    from fednc.common.config.tables import MethodSection
    from fednc.common.methods.api import Method

# Each is a file in this folder with its class as `METHOD`, and an entry point in pyproject.toml. Pages list them
# in this order.
SHIPPED = (
    "fedavg",
    "fedprox",
    "scaffold",
    "moon",
    "fedntd",
    "fedlc",
    "fedetf",
    "fednc",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "feddyn",
    "fednova",
    "scaffnew",
)
# Those with `mixes`, in the order in which they are applied.
MIXING = ("fedntd", "fedprox", "moon", "scaffnew", "scaffold")
log = logging.getLogger("fednc")
_REGISTERED: dict[str, Callable[[], type[Method]]] = {}


def register(name: str, load: Callable[[], type[Method]]) -> None:
    """Add a method to this process, for a notebook or a script; otherwise use an entry point of `fednc.methods`.

    `load` returns its class, and is called when the method is first used.

    Raises:
        ConfigError: a method with this name exists.
    """
    if name in names():
        raise ConfigError(
            f"method {name!r} cannot be registered: a method with this name exists; choose another name"
        )
    _REGISTERED[name] = load


def names() -> tuple[str, ...]:
    """Names of all installed methods, fednc's own first."""
    others = {plugin.name for plugin in plugins.installed(METHODS)} - set(SHIPPED)
    return (*SHIPPED, *sorted(others | set(_REGISTERED)))


def get(name: str) -> type[Method]:
    """The class of method `name`. Raises ConfigError if it is not installed or cannot be used."""
    if name in SHIPPED:
        return _shipped(name)
    plugin = plugin_of(name)
    return _checked(name, _REGISTERED[name]) if plugin is None else load(plugin)


@cache
def _shipped(name: str) -> type[Method]:
    """fednc's own method, even if a plug-in has the same name: other methods may be built on it."""
    own = [plugin for plugin in plugins.installed(METHODS) if plugin.is_built_in and plugin.name == name]
    return load(own[0] if own else plugins.find(METHODS, name))


def plugin_of(name: str) -> Plugin | None:
    """The plug-in of method `name`; None if it was registered in this process.

    Raises:
        ConfigError: it is not installed, or two distributions provide it.
    """
    if name in _REGISTERED:
        return None
    if is_name(name) and name not in names():
        raise ConfigError(f"method {name!r} is not installed here; available: {', '.join(names())}")
    return plugins.find(METHODS, name)


def load(plugin: Plugin) -> type[Method]:
    """The class of one plug-in. Raises ConfigError if it cannot be imported or used."""
    if plugin.is_built_in:
        shipped: type[Method] = plugin.load()
        return shipped
    return _checked(plugin.name, plugin.load)


def installed() -> dict[str, type[Method]]:
    """The usable methods by name; others are logged and left out."""
    found = {}
    for name in names():
        try:
            found[name] = get(name)
        except ConfigError as e:
            log.warning("%s", e)
    return found


def is_step(name: str) -> bool:
    """Whether a method only has a step at the server."""
    from fednc.common.methods.api import ServerStep

    return issubclass(get(name), ServerStep)


@lru_cache(maxsize=64)
def parts(section: MethodSection) -> tuple[Method, ...]:
    """The active methods of a run, steps at the server last."""
    others = sorted({*MIXING, section.name}, key=lambda name: (is_step(name), name))
    found = []
    for name in [*others, *([section.server_step] if section.server_step else [])]:
        method = get(name)
        values = section.model_extra or {}
        made = method(method.Options(**{key: values[key] for key in method.Options.model_fields if key in values}))
        if made.is_on:
            found.append(made)
    return tuple(found)


@lru_cache(maxsize=64)
def _checked(name: str, load: Callable[[], type[Method]]) -> type[Method]:
    """The result of `load`. Raises ConfigError if it is not a method of this name, or uses keys of others."""
    from fednc.common.config.tables import MethodSection
    from fednc.common.methods.api import Method

    method = load()
    if not (isinstance(method, type) and issubclass(method, Method) and getattr(method, "name", "") == name):
        raise ConfigError(
            f"method {name!r}: {method!r:.80} is not a class that derives from Method and has this name"
        )
    if method.mixes:
        raise ConfigError(f"method {name!r}: only fednc's own methods may set `mixes`")
    taken = set(MethodSection.model_fields).union(*(get(other).Options.model_fields for other in MIXING))
    if clash := sorted(taken & set(method.Options.model_fields)):
        raise ConfigError(f"method {name!r}: its keys {', '.join(clash)} are fednc's own; give them other names")
    return method
