"""Methods by name: entry points of group `fednc.methods`, fednc's own and those of other distributions alike.

    registry.get("mine")                      # its class, which derives from `api.Method` and has `name = "mine"`
    registry.installed()                      # all classes by name, those of fednc first
    registry.register("mine", lambda: Mine)   # for this process alone, in a notebook or a script

Read by the configuration, by both sides of a run and by the pages that list methods. A method is loaded when it is
first asked for, so importing this file imports no PyTorch. Knows no method but by its name.
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

# Each is a file of this folder that names its class `METHOD`, and an entry point in pyproject.toml. Pages list
# them in this order.
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
)
MIXING = ("fedntd", "fedprox", "moon", "scaffold")  # those with `mixes`, in the order in which their parts work
log = logging.getLogger("fednc")
_REGISTERED: dict[str, Callable[[], type[Method]]] = {}


def register(name: str, load: Callable[[], type[Method]]) -> None:
    """Add a method to this process, for a notebook or a script; others come as entry points of `fednc.methods`.

    `load` gives its class, and is called when the method is first used.

    Raises:
        ConfigError: there is a method of this name already.
    """
    if name in names():
        raise ConfigError(f"method {name!r} cannot be registered: there is one of this name; choose another name")
    _REGISTERED[name] = load


def names() -> tuple[str, ...]:
    """Names of all installed methods, fednc's own first."""
    others = {plugin.name for plugin in plugins.installed(METHODS)} - set(SHIPPED)
    return (*SHIPPED, *sorted(others | set(_REGISTERED)))


def get(name: str) -> type[Method]:
    """The class of method `name`. Raises ConfigError where it is not installed, or cannot be used."""
    if name in SHIPPED:
        return _shipped(name)
    plugin = plugin_of(name)
    return _checked(name, _REGISTERED[name]) if plugin is None else load(plugin)


@cache
def _shipped(name: str) -> type[Method]:
    """fednc's own, also where a plug-in bears its name: other methods may be built on it."""
    own = [plugin for plugin in plugins.installed(METHODS) if plugin.is_built_in and plugin.name == name]
    return load(own[0] if own else plugins.find(METHODS, name))


def plugin_of(name: str) -> Plugin | None:
    """Where method `name` comes from; None for one that was registered in this process.

    Raises:
        ConfigError: it is not installed, or two distributions bring it.
    """
    if name in _REGISTERED:
        return None
    if is_name(name) and name not in names():
        raise ConfigError(f"method {name!r} is not installed here; there are: {', '.join(names())}")
    return plugins.find(METHODS, name)


def load(plugin: Plugin) -> type[Method]:
    """The class of one plug-in. Raises ConfigError where it cannot be imported or used."""
    if plugin.is_built_in:
        shipped: type[Method] = plugin.load()
        return shipped
    return _checked(plugin.name, plugin.load)


def installed() -> dict[str, type[Method]]:
    """The methods that can be used here, by name; what cannot be used is logged and left out."""
    found = {}
    for name in names():
        try:
            found[name] = get(name)
        except ConfigError as e:
            log.warning("%s", e)
    return found


def is_step(name: str) -> bool:
    """Whether a method is a step at the server and nothing else."""
    from fednc.common.methods.api import ServerStep

    return issubclass(get(name), ServerStep)


@lru_cache(maxsize=64)
def parts(section: MethodSection) -> tuple[Method, ...]:
    """The methods at work in a run, steps at the server last."""
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
    """What `load` gives. Raises ConfigError: it is no method of this name, or takes keys that are another's."""
    from fednc.common.config.tables import MethodSection
    from fednc.common.methods.api import Method

    method = load()
    if not (isinstance(method, type) and issubclass(method, Method) and getattr(method, "name", "") == name):
        raise ConfigError(f"method {name!r}: {method!r:.80} is no class that derives from Method with this name")
    if method.mixes:
        raise ConfigError(f"method {name!r}: only methods of fednc may set `mixes`")
    taken = set(MethodSection.model_fields).union(*(get(other).Options.model_fields for other in MIXING))
    if clash := sorted(taken & set(method.Options.model_fields)):
        raise ConfigError(f"method {name!r}: its keys {', '.join(clash)} are fednc's own; give them other names")
    return method
