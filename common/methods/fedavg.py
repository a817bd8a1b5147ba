"""FedAvg: a preset of keys that all methods share."""

from __future__ import annotations

from fednc.common.methods.api import PLAIN, Method


class FedAvg(Method):
    """The weighted mean of the clients' models (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

    name = "fedavg"
    preset = PLAIN
    same_for_each_batch = True


METHOD = FedAvg
