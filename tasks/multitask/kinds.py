"""The tasks that a run may have, by name: which map each learns from, and how much its loss weighs.

Used by options, model and task. Weights are those published for DeMT (AAAI 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from fednc.tasks.dense.maps import DEPTH, EDGES, LABEL, NORMALS, PART, SALIENCY

SEGMENTATION, PARTS = "segmentation", "parts"


@dataclass(frozen=True)
class Kind:
    """One task.

    Attributes:
        map: the kind of map (`dense/maps.py`) that it learns from.
        weight: of its loss in the sum.
        channels: of its prediction; 0: one for each class or part of the run file.
    """

    map: str
    weight: float
    channels: int


KINDS = {
    SEGMENTATION: Kind(LABEL, 1.0, 0),
    PARTS: Kind(PART, 2.0, 0),
    "saliency": Kind(SALIENCY, 5.0, 1),
    "normals": Kind(NORMALS, 10.0, 3),
    "depth": Kind(DEPTH, 1.0, 1),
    "edges": Kind(EDGES, 50.0, 1),
}
