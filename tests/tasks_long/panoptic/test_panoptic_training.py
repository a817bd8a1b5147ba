"""Part labels at one of three clients: the federation finds parts better than that client alone.

The settings of bench/configs/panoptic.toml with two seeds; three and a half minutes of one core.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import fednc

CONFIG = Path(__file__).parents[3] / "bench" / "configs" / "panoptic.toml"
STREETS = "streets:images=40,test=128,seed={seed},site={site}/3"


def trained(clients: dict[str, str], seed: int) -> dict[str, float]:
    tables: dict[str, Any] = tomllib.loads(CONFIG.read_text())["run"]
    tables["method"] = {"name": "fednc", "readout": "vertex", "scale": 10.0}
    tables["seed"] = seed
    del tables["split"]  # these clients have data of their own
    tables["train"]["lr"] = 0.003
    tables["rounds"] |= {"min_clients": len(clients), "evaluate_every": tables["rounds"]["total"]}
    tables["evaluate"] = {"batch": 16, "test": STREETS.format(seed=5, site=0)}
    return dict(fednc.run(tables, clients).metrics)


def federation(*, labelled: int, seed: int) -> dict[str, str]:
    """Three clients that draw from the same streets; the first `labelled` have part labels."""
    return {
        f"site-{site}": STREETS.format(seed=5 + seed, site=site) + ("" if site < labelled else ",parts=no")
        for site in range(3)
    }


@pytest.mark.timeout(1200)
def test_part_labels_at_one_client_serve_all() -> None:
    """The mean over two seeds: single ones differ by more than the gain."""
    together, alone = [], []
    for seed in (1, 2):
        clients = federation(labelled=1, seed=seed)
        together.append(trained(clients, seed))
        alone.append(trained({"site-0": clients["site-0"]}, seed))
    for metric in ("part_miou", "pq"):
        federated, own = (sum(each[metric] for each in found) / 2 for found in (together, alone))
        assert federated > own, (metric, together, alone)
    assert min(each["part_miou"] for each in alone) > 0.05, f"{alone}: too little was learnt to compare anything"
