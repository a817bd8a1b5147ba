"""FedNC: a preset of keys that all methods share."""

from __future__ import annotations

from fednc.common.methods.api import FRAME, Method


class FedNC(Method):
    """A frozen frame, the client's class prior, a read-out by the class memory (after arXiv 2303.16066)."""

    name = "fednc"
    preset = FRAME | {"scale": 4.0, "readout": "discriminant"}
    same_for_each_batch = True


METHOD = FedNC
