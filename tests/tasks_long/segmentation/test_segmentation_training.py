"""CeCo in a federation of three clients: centres of the test pictures come to more equal angles, in every seed.

The shipped comparison itself, so that it cannot go stale. Mean IoU is not judged: it differs less than seeds do.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import read_comparison
from fednc.bench.compare.rows import Bench

CONFIG = Path(__file__).parents[3] / "bench" / "configs" / "scenes.toml"
MOST = 0.9  # of the deviation without CeCo


@pytest.mark.timeout(900)
def test_with_ceco_centres_are_at_more_equal_angles_in_every_seed(tmp_path: Path) -> None:
    compared = compare(read_comparison(CONFIG), {}, Bench(folder=tmp_path, command="", workers=2))
    found = {
        variant: {row["seed"]: row["summary"]["nc2_std"] for row in compared.of("tail-0.7", variant)}
        for variant in ("plain", "ceco")
    }
    ratios = {seed: found["ceco"][seed] / found["plain"][seed] for seed in (1, 2, 3)}
    assert max(ratios.values()) <= MOST, ratios
    miou = [row["summary"]["miou"] for row in compared.of("tail-0.7", "plain")]
    assert min(miou) > 0.15, f"{miou}: next to nothing was learnt, so geometry means nothing"
