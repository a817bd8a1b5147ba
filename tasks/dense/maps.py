"""The kinds of maps that a picture may have: what every pixel is, how far away it is, and so on.

Used by readers, by the data set and by the scene generator. Knows no task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

VOID = 255  # of `label` and `part`: not labelled, neither trained on nor judged
NO_INSTANCE = -1

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
    """

    dtype: torch.dtype
    batch_dtype: torch.dtype
    channels: int = 0


MAPS = {
    LABEL: MapKind(torch.uint8, torch.int64),
    DEPTH: MapKind(torch.float32, torch.float32),  # NaN: unknown
    NORMALS: MapKind(
        torch.float32, torch.float32, channels=3
    ),  # unit vectors, z towards the camera; zero: unknown
    EDGES: MapKind(torch.uint8, torch.int64),  # 1 on a border between objects
    INSTANCE: MapKind(torch.int16, torch.int64),
    PART: MapKind(torch.uint8, torch.int64),  # 0: background
    SALIENCY: MapKind(torch.uint8, torch.int64),  # 1 on the nearest object
}
