"""A run that goes on with another run file: which keys may differ from before, and what the differences are.

Asked when checkpoints are read. What the model and its classes depend on stays as it was; how long, with whom and
how carefully is the operator's to change, and the history says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.errors import ConfigError

# All of `[server]` besides, which bears on no result and is in no checkpoint.
MAY_CHANGE = (
    "rounds.total",
    "rounds.min_clients",
    "rounds.wait_s",
    "rounds.deadline_s",
    "rounds.rejoin_s",
    "rounds.evaluate_every",
    "rounds.max_update_norm",
    "rounds.max_examples",
    "rounds.outlier_ratio",
    "rounds.robust",
    "rounds.trim_share",
    "train.lr",
    "train.clip_norm",
    "method.server_lr",
)
Changes = dict[str, list[Any]]  # key: before, now; None where it stood at its default


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What differs between two run files, by dotted key."""
    old, new = _flat(before), _flat(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def check(changed: Changes, folder: Path, *, completed: int, has_sessions: bool) -> None:
    """Raises ConfigError: a run cannot go on with these changes."""
    fixed = [key for key in changed if key not in MAY_CHANGE or (key == "rounds.total" and has_sessions)]
    if fixed:
        told = ", ".join(
            f"{key} ({_said(changed[key][0])} before, now {_said(changed[key][1])})" for key in fixed[:5]
        )
        more = f" and {len(fixed) - 5} more" if len(fixed) > 5 else ""
        raise ConfigError(
            f"{folder} holds a run of another run file, which differs in {told}{more}: give the same file, or "
            f"another --folder. In a run that goes on only these may change: {', '.join(MAY_CHANGE)}"
            f"{' (not rounds.total, as there are sessions)' if has_sessions else ''}, and all of [server]"
        )
    total = changed.get("rounds.total", [0, completed])[1]
    if total < completed:
        raise ConfigError(
            f"rounds.total = {total}, but the run in {folder} has completed {completed} rounds: give at least that"
        )


def as_text(changed: Changes) -> str:
    """For people."""
    return ", ".join(f"{key} from {_said(old)} to {_said(new)}" for key, (old, new) in changed.items())


def _said(value: Any) -> str:
    return "its default" if value is None else f"{value!r:.60}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
