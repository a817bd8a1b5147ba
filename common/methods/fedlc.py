"""FedLC: a preset of keys that all methods share."""

from __future__ import annotations

from fednc.common.methods.api import PLAIN, Method


class FedLC(Method):
    """Margins for a client's rare classes, none for those it lacks (Zhang et al., ICML 2022, arXiv 2209.00189)."""

    name = "fedlc"
    preset = PLAIN | {"loss": "calibrated-ce"}
    same_for_each_batch = True


METHOD = FedLC
