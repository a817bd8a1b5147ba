"""The values of a round by name, the same in all trackers that come with fednc, and the run file as flat keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fednc.common.trackers import Round


def values_of(record: Round, primary: str = "") -> dict[str, float]:
    """Every finite number of a round: metrics, loss, traffic, time, and the metrics of each client.

    Names: `primary`, `metrics/...`, `train/loss`, `traffic/bytes_up`, `clients/...`, `worst_client/...`.
    """
    found: dict[str, float | None] = {
        "primary": record.metrics.get(primary),
        "train/loss": record.loss,
        "round/seconds": record.seconds,
        "round/examples": record.examples,
        "round/replies": record.replies,
        "round/missing": len(record.missing),
        "round/failures": len(record.failures),
        "traffic/bytes_up": record.bytes_up,
        "traffic/bytes_down": record.bytes_down,
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
        **{f"worst_client/{name}": value for name, value in record.worst.items()},
    }
    found |= {f"clients/{name}": value for name, value in record.spread.items() if _is_number(value)}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train.lr": "0.1", ...}`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found
