"""Flower's environment variables for every process of ours: no telemetry, no update check, no installs.

Must be set before flwr is imported, so the `fednc` command calls this first. Must not import flwr.
"""

from __future__ import annotations

import os

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def quiet_flower() -> None:
    """Switch off what Flower does of its own accord; values that the user has set win."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
