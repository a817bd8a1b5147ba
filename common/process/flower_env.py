"""What every process of ours asks of Flower before it is imported: no telemetry, no update check, no installs.

Called first by the `fednc` command and by anything that starts a process of ours. Must import nothing of flwr.
"""

from __future__ import annotations

import os

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def quiet_flower() -> None:
    """Switch off whatever Flower does on its own accord; values the user has set already win."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
