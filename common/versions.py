"""What must be the same on both sides of a run: the package's series, and where its task and its method come from.

Announced by the client when it attends, by the server with every instruction, and compared by whoever hears it:
two versions of one task would train together without an error and spoil the model. Opens no connection.
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
from fednc.common.tasks import discovery as tasks

log = logging.getLogger("fednc")
MOST_CHARACTERS = 200  # of an offer; a server reads no longer ones

_REMEDY = "install the same version of fednc, and of the task, on both sides"
# No server may tell an owner to install a distribution that the owner has not chosen.
_ASK = "they come from different distributions; agree with the server's operator which one both sides install"


@dataclass(frozen=True)
class Offer:
    """A task or method as one side has it installed.

    Attributes:
        version: of the class itself.
        distribution: that brings it; fednc's own are compared by the package's series and by `version`.
        release: version of the distribution.
    """

    name: str
    version: str
    distribution: str = OURS
    release: str = ""

    def __str__(self) -> str:
        """As it is announced: `image/1`, or `wards/1 our-wards==0.3.0` where it is not fednc's own."""
        source = "" if self.distribution == OURS else f" {self.distribution}=={self.release}"
        return f"{self.name}/{self.version}{source}"

    @classmethod
    def parse(cls, text: str) -> Offer:
        """What `str` made; of any other text something that equals no honest offer."""
        entry, _, source = text.partition(" ")
        name, _, number = entry.rpartition("/")
        distribution, _, release = source.partition("==")
        return cls(name, number, distribution or OURS, release)

    @property
    def described(self) -> str:
        """For people; the other side may have chosen any of these words."""
        source = "" if self.distribution == OURS else f" of {self.distribution[:64]} {self.release[:32]}"
        return _plain(f"version {self.version[:20]}{source}")


@cache
def package() -> str:
    """The version of this fednc."""
    return version("fednc")


def installed_tasks(allowed: Collection[str] = ()) -> tuple[str, ...]:
    """The offers of the tasks that can be used here, as text; of those in `allowed` only, if it names any."""
    offers = []
    for name in allowed or tasks.names():
        try:
            offers.append(str(task_offer(name)))
        except ConfigError as e:  # one that does not load must not keep the others from running
            log.warning("%s", e)
    return tuple(offer for offer in offers if len(offer) <= MOST_CHARACTERS)


def installed_methods() -> tuple[str, ...]:
    """The offers of the methods, as text."""
    offers = []
    for name in registry.names():
        try:
            offers.append(str(method_offer(name)))
        except ConfigError as e:
            log.warning("%s", e)
    return tuple(offer for offer in offers if len(offer) <= MOST_CHARACTERS)


def task_offer(name: str) -> Offer:
    """The task of that name as it is installed here. Raises ConfigError where it cannot be used."""
    plugin = plugins.find(TASKS, name)
    return Offer(name, str(tasks.load(plugin).version), plugin.distribution, plugin.release)


def method_offer(name: str) -> Offer:
    """The method of that name as it is here. Raises ConfigError where it cannot be used."""
    method, plugin = registry.get(name), registry.plugin_of(name)
    if plugin is None:  # of this process alone
        return Offer(name, str(method.version))
    return Offer(name, str(method.version), plugin.distribution, plugin.release)


def of_run(run: RunConfig) -> tuple[str, str, str]:
    """What a run needs: package, and the offers of its task and of its method as they are here."""
    return package(), str(task_offer(run.task.name)), str(method_offer(run.method.name))


def series(software: str) -> tuple[int, ...]:
    """The part of a version that must be equal: major, and minor too while major is 0. Empty: no version."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})", software)
    if match is None:
        return ()
    major, minor = int(match[1]), int(match[2])
    return (major,) if major else (major, minor)


def package_differs(here: str, there: str, who: str) -> str:
    """Why two packages do not go together, from the side of `here`; empty: they do, or nothing was said."""
    if not there or series(here) == series(there):
        return ""
    return f"this is fednc {here}, {who} has {there[:40]}, and they do not go together: {_REMEDY}"


def entry_differs(kind: str, here: str, there: Sequence[str], who: str, *, is_server: bool) -> str:
    """Why what the other side has does not go with ours; empty: it does, or nothing was said.

    Args:
        kind: `task` or `method`.
        here: our offer of the run's.
        there: the offers of the other side, `who`.
        is_server: whether we are the server, whose installation is the one that clients follow.
    """
    if not there or here in there:
        return ""
    ours = Offer.parse(here)
    if ours.name in there and ours.version == "1" and ours.distribution == OURS:
        return ""  # announced as it was before methods had versions
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
    """One line of ASCII: the other side may have chosen any of it."""
    return re.sub(r"[^\x20-\x7e]", "?", text)


def _remedy(server: Offer) -> str:
    """What to do so that the client has what the server has."""
    if server.distribution == OURS:
        return _REMEDY
    wanted = _plain(f"{server.distribution}=={server.release[:32]}")
    return f"install the same version on both sides; the server has {wanted}"
