"""Excludes loaded modules from garbage collection. Called when a server or a client starts."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """Exempt all current objects from garbage collection, since they live as long as the process.

    With torch and flwr these are two hundred thousand objects; scanning them blocks a server for 0.1 s.
    """
    gc.freeze()
