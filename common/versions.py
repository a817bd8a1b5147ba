"""What must be the same on both sides of a run: the package's series, and the versions of its task and method.

Announced by the client when it attends, by the server with every instruction, and compared by whoever hears it:
two versions of one task would train together without an error and spoil the model. Opens no connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version

from fednc.common.config.run import RunConfig
from fednc.common.methods import registry
from fednc.common.tasks import discovery as tasks

_REMEDY = "install the same version of fednc, and of the task, on both sides"


def package() -> str:
    """The version of this fednc."""
    return version("fednc")


def installed_tasks() -> tuple[str, ...]:
    """`name/version` of each task that is installed here."""
    return tuple(f"{name}/{task.version}" for name, task in tasks.installed().items())


def installed_methods() -> tuple[str, ...]:
    """`name/version` of each method."""
    return tuple(f"{name}/{method.version}" for name, method in registry.installed().items())


def of_run(run: RunConfig) -> tuple[str, str, str]:
    """What a run needs: package, `name/version` of its task and of its method, as they are here."""
    return _of(run.task.name, run.method.name)


@lru_cache(maxsize=32)
def _of(task: str, method: str) -> tuple[str, str, str]:
    return package(), f"{task}/{tasks.task_class(task).version}", f"{method}/{registry.get(method).version}"


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


def entry_differs(kind: str, needed: str, there: Sequence[str], who: str) -> str:
    """Why what the other side has does not fit `needed` (`name/version`); empty: it does, or nothing was said."""
    if not there or needed in there:
        return ""
    name, _, ours = needed.rpartition("/")
    theirs = [each.rpartition("/")[2] for each in there if each.rpartition("/")[0] == name]
    if theirs:
        return f"{kind} {name!r} has version {ours} here, {who} has version {theirs[0][:20]}: {_REMEDY}"
    if name in there and ours == "1":
        return ""  # announced as it was before methods had versions
    return f"{kind} {name!r} (version {ours}) is not installed at {who}: {_REMEDY}"
