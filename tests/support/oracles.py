"""Values computed by other people's code. They are not part of the project: tests skip without them."""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE = Path(__file__).parents[2].parent / "shared" / "oracles"
ORACLES = Path(os.environ.get("FEDNC_ORACLES", _BESIDE))
