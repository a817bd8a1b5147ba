"""Small updates of every dtype, and their mean."""

from __future__ import annotations

import torch

from fednc.common.wire import arrays
from fednc.server.aggregation.mean import Fold

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


def started(reference: dict[str, torch.Tensor], weights: list[int]) -> Fold:
    fold = Fold(reference)
    fold.start(reference, weights)
    return fold


def mean_of(updates: list[tuple[dict[str, torch.Tensor], int]], reference=None) -> dict[str, torch.Tensor]:
    """Our mean, computed in the given order."""
    fold = started(reference or updates[0][0], [weight for _, weight in updates])
    for tensors, weight in updates:
        fold.add(arrays.to_record(tensors), weight)
    return arrays.from_record(fold.mean())


def bits(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(bytes(array.data) for array in arrays.to_record(tensors).values())


REFERENCE = {"a": torch.zeros(3), "b": torch.zeros(2, 2), "c": torch.zeros(2, dtype=torch.bfloat16)}


def good() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.ones(2, dtype=torch.bfloat16)}


def with_value(key: str, value: float) -> dict[str, torch.Tensor]:
    tensors = good()
    tensors[key].view(-1)[-1] = value
    return tensors
