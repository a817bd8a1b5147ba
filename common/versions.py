"""Versions that must match on both sides of a run: the series of fednc, and the versions of task and method.

The client announces its versions when it joins, the server with every instruction, and the receiver compares them.
Otherwise two versions of one task could train together without an error and ruin the model. Opens no connection.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from fednc.common import plugins
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.methods import registry
from fednc.common.plugins import OURS, TASKS
from fednc.common.tasks import discovery

log = logging.getLogger("fednc")
MOST_CHARACTERS = 200  # of an offer; a server ignores longer ones

_REMEDY = "install the same version of fednc, and of the task, on both sides"
# A server must never tell an owner to install a distribution that the owner has not chosen.
_ASK = "they come from different distributions; agree with the server's operator which one both sides install"


@dataclass(frozen=True)
class Offer:
    """A task or method that is installed on one side.

    Attributes:
        version: version of its class.
        distribution: the distribution it comes from. fednc's own tasks and methods are compared by the series of
            the package and by `version`.
        release: version of the distribution.
    """

    name: str
    version: str
    distribution: str = OURS
    release: str = ""

    def __str__(self) -> str:
        """As it is announced: `image/1`, or `wards/1 our-wards==0.3.0` for one from another distribution."""
        source = "" if self.distribution == OURS else f" {self.distribution}=={self.release}"
        return f"{self.name}/{self.version}{source}"

    @classmethod
    def parse(cls, text: str) -> Offer:
        """Parse the result of `str`. Any other text gives something that equals no real offer."""
        entry, _, source = text.partition(" ")
        name, _, number = entry.rpartition("/")
        distribution, _, release = source.partition("==")
        return cls(name, number, distribution or OURS, release)

    @property
    def described(self) -> str:
        """Text for people. The other side may have chosen any part of it, so it is cut and cleaned."""
        source = "" if self.distribution == OURS else f" of {self.distribution[:64]} {self.release[:32]}"
        return _plain(f"version {self.version[:20]}{source}")


@cache
def package() -> str:
    """The installed version of fednc."""
    return version("fednc")


def installed_tasks(allowed: Collection[str] = ()) -> tuple[str, ...]:
    """The tasks that can be used here, as offers in text form; only those in `allowed`, unless it is empty."""
    offers = []
    for name in allowed or discovery.names():
        try:
            offers.append(str(task_offer(name)))
        except ConfigError as e:  # a task that does not load must not block the others
            log.warning("%s", e)
    return tuple(offer for offer in offers if len(offer) <= MOST_CHARACTERS)


def installed_methods() -> tuple[str, ...]:
    """The installed methods, as offers in text form."""
    offers = []
    for name in registry.names():
        try:
            offers.append(str(method_offer(name)))
        except ConfigError as e:
            log.warning("%s", e)
    return tuple(offer for offer in offers if len(offer) <= MOST_CHARACTERS)


def task_offer(name: str) -> Offer:
    """The installed task of that name. Raises ConfigError if it cannot be used."""
    plugin = plugins.find(TASKS, name)
    return Offer(name, str(discovery.load(plugin).version), plugin.distribution, plugin.release)


def method_offer(name: str) -> Offer:
    """The installed method of that name. Raises ConfigError if it cannot be used."""
    method, plugin = registry.get(name), registry.plugin_of(name)
    if plugin is None:  # registered in this process only
        return Offer(name, str(method.version))
    return Offer(name, str(method.version), plugin.distribution, plugin.release)


def of_run(run: RunConfig) -> tuple[str, str, str]:
    """The versions that a run needs, as installed here: package, task and method."""
    return package(), str(task_offer(run.task.name)), str(method_offer(run.method.name))


def series(software: str) -> tuple[int, ...]:
    """The part of a version that must match: major, and also minor while major is 0. Empty: not a version."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})", software)
    if match is None:
        return ()
    major, minor = int(match[1]), int(match[2])
    return (major,) if major else (major, minor)


def package_differs(here: str, there: str, who: str) -> str:
    """Why the two versions of fednc are incompatible; empty if they are compatible or `there` is not known."""
    if not there or series(here) == series(there):
        return ""
    return f"this is fednc {here}, {who} has {there[:40]}, and the two are incompatible: {_REMEDY}"


def entry_differs(kind: str, here: str, there: Sequence[str], who: str, *, is_server: bool) -> str:
    """Why the other side's task or method is incompatible with ours; empty if it is compatible or not known.

    Args:
        kind: `task` or `method`.
        here: our offer of the run's task or method.
        there: the offers of the other side.
        who: name of the other side.
        is_server: whether we are the server. Clients must match the server's installation.
    """
    if not there or here in there:
        return ""
    ours = Offer.parse(here)
    if ours.name in there and ours.version == "1" and ours.distribution == OURS:
        return ""  # announced by a client from before methods had versions
    theirs = next((offer for offer in map(Offer.parse, there) if offer.name == ours.name), None)
    if theirs is None:
        why = f"{kind} {ours.name!r} ({ours.described}) is not installed at {who}, or not allowed there"
        allow = f", and allow it there (--allow-task {ours.name}, or its policy)" if kind == "task" else ""
        return f"{why}: {_remedy(ours)}{allow}"
    known = is_server or ours.distribution == theirs.distribution
    remedy = _remedy(ours if is_server else theirs) if known else _ASK
    place = "at the server" if is_server else "here"  # it is the client's log that shows what the server says
    return f"{kind} {ours.name!r} has {ours.described} {place}, {who} has {theirs.described}: {remedy}"


def _plain(text: str) -> str:
    """One line of ASCII, because the other side may have sent anything."""
    return re.sub(r"[^\x20-\x7e]", "?", text)


def _remedy(server: Offer) -> str:
    """How to make the client's installation match the server's."""
    if server.distribution == OURS:
        return _REMEDY
    wanted = _plain(f"{server.distribution}=={server.release[:32]}")
    return f"install the same version on both sides; the server has {wanted}"
