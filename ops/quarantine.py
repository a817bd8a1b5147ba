"""Plug-ins in quarantine: those that failed their contract's tests. Pipelines refuse them.

`fednc plugins check` keeps the outcome here, `fednc plugins` shows it. An outcome counts for the code that was
tested: if the hash of the distribution changes, or fednc's version, the plug-in counts as not checked. Runs no
test itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fednc.common import plugins, versions
from fednc.common.config.run import RunConfig
from fednc.common.distributions import code_of, licence_of, named_by
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder, write_atomically
from fednc.common.peer_text import one_line
from fednc.common.plugins import KINDS, Plugin

PASSED, FAILED, UNCHECKED = "passed", "failed", "not checked"
_FORMAT = 1
_MOST_TEXT = 500  # characters of a failure


@dataclass(frozen=True)
class Checked:
    """What is known about one plug-in: JSON values, for the lineage of a model.

    Attributes:
        outcome: `passed`, `failed` or `not checked`.
        failures: what each test that failed said, by the promise that does not hold.
    """

    kind: str
    name: str
    distribution: str
    version: str
    licence: str
    code_sha256: str
    outcome: str = UNCHECKED
    failures: Mapping[str, str] | None = None
    checked_at: float = 0.0  # seconds since 1970

    @property
    def why(self) -> str:
        """The first test that failed; empty if none did."""
        return next((f"{what}: {said}" for what, said in (self.failures or {}).items()), "")

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def known(plugin: Plugin) -> Checked:
    """What is known about a plug-in as it is installed now. Does not import it."""
    said = _described(plugin)
    try:
        kept = json.loads(_path(said).read_bytes())
        return Checked(**{**asdict(said), **{key: kept[key] for key in ("outcome", "failures", "checked_at")}})
    except (OSError, ValueError, KeyError, TypeError):
        return said  # never tested here, or the file is damaged: test it again


def keep(plugin: Plugin, outcomes: Mapping[str, str]) -> Checked:
    """Keep the outcome of a plug-in's contract tests.

    Args:
        outcomes: what each test said, by what it tests; empty text: it passed.

    Raises:
        OSError: it cannot be written.
    """
    failures = {one_line(what, _MOST_TEXT): one_line(said, _MOST_TEXT) for what, said in outcomes.items() if said}
    found = {"outcome": FAILED if failures else PASSED, "failures": failures, "checked_at": round(time.time(), 3)}
    checked = Checked(**{**asdict(_described(plugin)), **found})
    path = _path(checked)
    private_folder(path.parent)
    write_atomically(path, json.dumps({"format": _FORMAT, **checked.to_json()}, indent=1).encode())
    return checked


def admit(*runs: RunConfig, unchecked: bool = True) -> list[Checked]:
    """The plug-ins that run files use, none of which is in quarantine. Built-in ones are not among them.

    Args:
        unchecked: whether plug-ins that were never tested may be used.

    Raises:
        ConfigError: one failed its tests, or was not tested although it has to be.
    """
    found = []
    for group, name in dict.fromkeys(named for run in runs for named in named_by(run)):
        plugin = next((each for each in plugins.installed(group) if each.name == name), None)
        if plugin is None or plugin.is_built_in:
            continue  # registered in this process only, or ours
        found.append(_admitted(known(plugins.find(group, name)), unchecked=unchecked))
    return found


def _admitted(checked: Checked, *, unchecked: bool) -> Checked:
    """Raises ConfigError."""
    who = f"{checked.kind} {checked.name!r} of {checked.distribution} {checked.version}"
    if checked.outcome == FAILED:
        raise ConfigError(
            f"{who} is in quarantine, because it failed its contract's tests ({checked.why}). Install a repaired "
            f"version, or run `fednc plugins check {checked.name}` again"
        )
    if checked.outcome == UNCHECKED and not unchecked:
        raise ConfigError(
            f"{who} has not been tested as it is installed: run `fednc plugins check {checked.name}`"
        )
    return checked


def _described(plugin: Plugin) -> Checked:
    return Checked(
        kind=KINDS[plugin.group],
        name=plugin.name,
        distribution=plugin.distribution,
        version=plugin.release,
        licence=licence_of(plugin.distribution),
        code_sha256=code_of(plugin),
    )


def _path(said: Checked) -> Path:
    """The file of one plug-in, one build of its distribution and one version of fednc's tests."""
    parts = (said.kind, said.name, said.distribution, said.version, said.code_sha256, versions.package())
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "fednc" / "plugin-checks"
    return folder / f"{hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()}.json"
