"""Overlapping sub-batches of one batch. Called by code that learns scales on one data set; must not know models.

Legend: B batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def windows(batch: int, parts: int, overlap: float) -> list[slice]:
    """`parts` runs of a batch of B examples; L = B // parts; run s is [(1-r) L s, (1+r) L (s+1)), rounded down.

    The first begins at 0 and the last ends at B, so that every example is in at least one. Without overlap, and if
    `parts` divides B, they are a partition. NIO (NeurIPS 2022, arXiv 2210.05956).

    Args:
        batch: B, at least `parts`.
        parts: number of runs.
        overlap: r in 0 to 1, by which each run is longer at both ends.
    """
    length = batch // parts
    starts = [int((1 - overlap) * length * s) for s in range(parts)]
    ends = [min(batch, int((1 + overlap) * length * (s + 1))) for s in range(parts - 1)]
    return [slice(start, end) for start, end in zip(starts, [*ends, batch], strict=True)]


def cut(batch: Any, rows: slice) -> Any:
    """Some examples of a task's batch, which is a tensor [B, ...], or tensors in tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {key: cut(part, rows) for key, part in batch.items()}
    return type(batch)(cut(part, rows) for part in batch)
