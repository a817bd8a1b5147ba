"""Versions of the data behind one model: which number a run's data gets, and what changed between two runs.

A change of a client's columns or label map, or of the classes, makes a new version. More or fewer examples do not,
nor does a client that joins or stays away. If the old form comes back, so does its number. Knows no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fednc.common.tasks.data_manifest import DataManifest, changes_between

Forms = Mapping[str, Any]  # see `RunFiles.forms`


@dataclass(frozen=True)
class KnownData:
    """The data of one registered version: its number, when it was heard, and its forms."""

    number: int
    at: float
    forms: Forms


def number_for(forms: Forms, known: Iterable[KnownData]) -> int:
    """The version of data with these forms: an earlier one that it agrees with, the latest first, or a new one."""
    states: dict[int, dict[str, Any]] = {}
    for data in sorted(known, key=lambda data: data.at):  # the data heard last comes last
        state = states.pop(data.number, {"classes": data.forms["classes"], "clients": {}})
        state["clients"] = {**state["clients"], **data.forms["clients"]}
        states[data.number] = state
    for is_current, (number, state) in enumerate(reversed(states.items())):
        if _agree(forms, state, needs_common=is_current > 0):
            return number
    return max(states, default=0) + 1


def _agree(forms: Forms, state: Forms, *, needs_common: bool) -> bool:
    common = forms["clients"].keys() & state["clients"].keys()
    if forms["classes"] != state["classes"] or (needs_common and not common):
        return False
    return all(forms["clients"][name] == state["clients"][name] for name in common)


def differences(
    old_classes: Iterable[str],
    new_classes: Iterable[str],
    old: Mapping[str, DataManifest | None],
    new: Mapping[str, DataManifest | None],
) -> list[str]:
    """What changed in the data from one run to another, one sentence each."""
    before, after = list(old_classes), list(new_classes)
    found = [] if before == after else [f"the classes were {', '.join(before)} and are {', '.join(after)}"]
    for name in sorted(old.keys() & new.keys()):
        one, other = old[name], new[name]
        if one is not None and other is not None and one.has_form and other.has_form:
            found += [f"{name}: {change}" for change in changes_between(one, other)]
    return found
