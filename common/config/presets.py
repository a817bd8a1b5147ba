"""The methods by name: what `[method] name = ` sets where the run file says nothing else.

Read by the configuration alone; the keys are those of its `[method]` section.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "fedavg": {"head": "linear", "loss": "ce", "readout": "head"},
    "fedprox": {"head": "linear", "loss": "ce", "readout": "head", "proximal": 0.01},
    "scaffold": {"head": "linear", "loss": "ce", "readout": "head", "control_variates": True},
    "moon": {"head": "linear", "loss": "ce", "readout": "head", "contrast": 1.0},
    "fedntd": {"head": "linear", "loss": "ce", "readout": "head", "distil": 1.0},
    "fedlc": {"head": "linear", "loss": "calibrated-ce", "readout": "head"},
    "fedetf": {"head": "frame", "loss": "balanced-ce", "train_scale": True, "readout": "vertex"},
    "fednc": {"head": "frame", "loss": "balanced-ce", "scale": 4.0, "readout": "discriminant"},
}

# Raise a method's number when the same run file would train another way than before; those not named have 1.
METHOD_VERSIONS: dict[str, int] = {}
