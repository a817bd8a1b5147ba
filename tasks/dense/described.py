"""What `fednc predict` says of an example in which every pixel or point has a class.

Legend: B batch, K label space, M pixels or points of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 3  # classes of an example


def most_frequent(output: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each example its most frequent classes with their shares, and the mean confidence.

    Args:
        output: scores [B, K, ...].
    """
    confidence_BM, class_BM = output.flatten(2).float().softmax(dim=1).max(dim=1)
    rows = []
    for confidence_M, class_M in zip(confidence_BM, class_BM, strict=True):
        share_K = torch.bincount(class_M, minlength=len(names)) / len(class_M)
        order = share_K.argsort(descending=True, stable=True)[:SHOWN].tolist()
        told = [f"{names[c]} {float(share_K[c]):.0%}" for c in order if share_K[c] > 0]
        rows.append({"classes": ", ".join(told), "confidence": float(confidence_M.mean())})
    return rows
