"""Compares the run file of a continued run with the one before, and decides which keys may change.

Used when checkpoints are read. Keys that the model and its classes depend on must stay. An operator may change how
long a run takes, with how many clients and with which safeguards; the changes are recorded in the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.errors import ConfigError

# All of `[server]` may change too: it does not affect results and is not part of a checkpoint.
MAY_CHANGE = (
    "rounds.total",
    "rounds.min_clients",
    "rounds.wait_s",
    "rounds.deadline_s",
    "rounds.rejoin_s",
    "rounds.evaluate_every",
    "rounds.stop_after",
    "rounds.max_update_norm",
    "rounds.max_examples",
    "rounds.outlier_ratio",
    "rounds.robust",
    "rounds.trim_share",
    "train.lr",
    "train.clip_norm",
    "method.server_lr",
)
Changes = dict[str, list[Any]]  # key: [before, now]; None means the default


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """The differences between two run files, by dotted key."""
    old, new = _flat(before), _flat(now)
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def check(changed: Changes, folder: Path, *, completed: int, has_sessions: bool) -> None:
    """Raises ConfigError if the run cannot continue with these changes."""
    fixed = [key for key in changed if key not in MAY_CHANGE or (key == "rounds.total" and has_sessions)]
    if fixed:
        listed = ", ".join(
            f"{key} ({_said(changed[key][0])} before, now {_said(changed[key][1])})" for key in fixed[:5]
        )
        more = f" and {len(fixed) - 5} more" if len(fixed) > 5 else ""
        raise ConfigError(
            f"{folder} contains a run with another run file, which differs in {listed}{more}: give the same file, "
            f"or another --folder. A run that continues may change only {', '.join(MAY_CHANGE)}"
            f"{' (not rounds.total, as there are sessions)' if has_sessions else ''}, and all of [server]"
        )
    total = changed.get("rounds.total", [0, completed])[1]
    if total < completed:
        raise ConfigError(
            f"rounds.total = {total}, but the run in {folder} has completed {completed} rounds: set at least that"
        )


def as_text(changed: Changes) -> str:
    """The changes in one line."""
    return ", ".join(f"{key} from {_said(old)} to {_said(new)}" for key, (old, new) in changed.items())


def _said(value: Any) -> str:
    return "its default" if value is None else f"{value!r:.60}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
