"""Methods by name: those of fednc, and those that were registered.

    registry.register("mine", lambda: Mine)   # a class that derives from `api.Method`, with `name = "mine"`
    registry.get("mine")                      # its class
    registry.installed()                      # all classes by name, those of fednc first

Read by the configuration, by both sides of a run and by the pages that list methods. A method is loaded when it is
first asked for, so importing this file imports no PyTorch. Knows no method but by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from fednc.common.config.tables import MethodSection
    from fednc.common.methods.api import Method

# Each is a file of this folder that names its class `METHOD`. In the order in which pages list them.
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
_REGISTERED: dict[str, Callable[[], type[Method]]] = {}


def register(name: str, load: Callable[[], type[Method]]) -> None:
    """Add a method that is not fednc's own. `load` gives its class, and is called when the method is first used.

    Raises:
        ConfigError: there is a method of this name already.
    """
    if name in names():
        raise ConfigError(f"method {name!r} cannot be registered: there is one of this name; choose another name")
    _REGISTERED[name] = load


def names() -> tuple[str, ...]:
    """Names of all installed methods, fednc's own first."""
    return (*SHIPPED, *sorted(_REGISTERED))


def get(name: str) -> type[Method]:
    """The class of method `name`. Raises ConfigError where it is not installed, or cannot be used."""
    if name in SHIPPED:
        shipped: type[Method] = import_module(f"fednc.common.methods.{name}").METHOD
        return shipped
    if name not in _REGISTERED:
        raise ConfigError(f"method {name!r} is not installed here; there are: {', '.join(names())}")
    return _checked(name, _REGISTERED[name])


def installed() -> dict[str, type[Method]]:
    """All installed methods by name."""
    return {name: get(name) for name in names()}


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
