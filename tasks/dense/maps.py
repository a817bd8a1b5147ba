"""The kinds of maps that a picture may have: what every pixel is, how far away it is, and so on.

Used by readers, by the data set and by the scene generator. Knows no task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

VOID = 255  # of `label` and `part`: not labelled, neither trained on nor judged
NO_INSTANCE = -1
MOST_INSTANCE = 32767  # number of an object; maps of them are stored in 16 bits

LABEL, DEPTH, NORMALS, EDGES, INSTANCE, PART, SALIENCY = (
    "label",
    "depth",
    "normals",
    "edges",
    "instance",
    "part",
    "saliency",
)


@dataclass(frozen=True)
class MapKind:
    """How a map is stored, and how batches hold it.

    Attributes:
        dtype: of the stored tensor [N, H, W] or, with channels, [N, channels, H, W].
        batch_dtype: of the tensor in a batch.
        channels: 0 for a map with one value per pixel and no channel axis.
        unknown: value of a pixel that nothing is known of; None: every pixel of such a map is known.
    """

    dtype: torch.dtype
    batch_dtype: torch.dtype
    channels: int = 0
    unknown: float | None = None


MAPS = {
    LABEL: MapKind(torch.uint8, torch.int64, unknown=VOID),
    DEPTH: MapKind(torch.float32, torch.float32, unknown=math.nan),
    # unit vectors, z towards the camera
    NORMALS: MapKind(torch.float32, torch.float32, channels=3, unknown=0.0),
    EDGES: MapKind(torch.uint8, torch.int64, unknown=VOID),  # 1 on a border between objects
    INSTANCE: MapKind(torch.int16, torch.int64),
    PART: MapKind(torch.uint8, torch.int64, unknown=VOID),  # 0: background
    SALIENCY: MapKind(torch.uint8, torch.int64, unknown=VOID),  # 1 on the nearest object
}


def known(kind: str, value: torch.Tensor) -> torch.Tensor:
    """bool [N, H, W]: the pixels of a map of which something is known."""
    form = MAPS[kind]
    if form.unknown is None:
        return torch.ones_like(value, dtype=torch.bool)
    if form.channels:
        return (value != form.unknown).any(dim=1)
    return ~value.isnan() if math.isnan(form.unknown) else value != form.unknown
