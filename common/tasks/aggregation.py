"""How the server combines the clients' values of a tensor. A task chooses this for each key.

Used by the task contract, the server's aggregation and the client's app. Knows no model.
"""

from __future__ import annotations

from enum import StrEnum


class Aggregation(StrEnum):
    """How one key of the state dict is aggregated."""

    MEAN = "mean"  # over all clients, weighted by their examples
    OWNERS = "owners"  # only over clients that trained the key, weighted by the examples that trained it
    CIRCULAR = "circular"  # angles in radians: direction of the mean of (cos, sin), weighted by examples
    FIXED = "fixed"  # sent to clients, but never trained
    LOCAL = "local"  # never sent: stays on the client, across rounds and restarts
