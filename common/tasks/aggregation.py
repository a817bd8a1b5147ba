"""How the server makes one value of what clients send of a tensor. A task says it key by key.

Read by the task contract, by the server's fold and by the client's app. Knows no model.
"""

from __future__ import annotations

from enum import StrEnum


class Aggregation(StrEnum):
    """What becomes of one key of the state dict."""

    MEAN = "mean"  # over all clients, weighted by their examples
    OWNERS = "owners"  # over those clients only that trained the key, weighted by the examples that trained it
    CIRCULAR = "circular"  # of angles in radians: the direction of the mean of (cos, sin), weighted by examples
    FIXED = "fixed"  # travels down and is never trained
    LOCAL = "local"  # never travels: stays on the client, across rounds and restarts
