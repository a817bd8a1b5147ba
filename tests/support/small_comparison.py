"""A comparison small enough for tests: cpu-smoke with two variants, few images, two rounds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fednc.bench.compare.plan import Comparison

CONFIGS = sorted((Path(__file__).parents[2] / "bench" / "configs").glob("*.toml"))
SMOKE = next(path for path in CONFIGS if path.name == "cpu-smoke.toml")


def reduced(**changes: Any) -> Comparison:
    """cpu-smoke with two variants, few images, two rounds."""
    values = tomllib.loads(SMOKE.read_text(encoding="utf-8"))
    values["variants"] = [one for one in values["variants"] if one["name"] in ("fedavg", "fednc")]
    values["data"]["train_examples"], values["seeds"], values["tuning"]["rates"] = 160, [1, 2], [0.01, 0.1]
    values["run"]["task"]["width"], values["run"]["frame"], values["run"]["rounds"] = 8, {"dim": 16}, {"total": 2}
    return Comparison.model_validate({**values, **changes})
