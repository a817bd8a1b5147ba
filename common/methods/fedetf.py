"""FedETF: a preset of keys that all methods share."""

from __future__ import annotations

from fednc.common.methods.api import FRAME, Method


class FedETF(Method):
    """A frozen frame as classifier, a trained scale, the class prior (Li et al., ICCV 2023, arXiv 2303.10058)."""

    name = "fedetf"
    preset = FRAME | {"train_scale": True, "readout": "vertex"}
    same_for_each_batch = True


METHOD = FedETF
