"""The forms in which a served model takes examples: as files, as raw values, or as preprocessed inputs.

A task lists its own in `Task.request_forms`; `fednc serve` offers each as an input tensor. Knows no protocol, only
the names that the Open Inference Protocol has for data types.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = np.ndarray[Any, Any]  # [B, ...]; of `bytes` objects for datatype BYTES


@dataclass(frozen=True)
class RequestForm:
    """One way to give examples to a served model.

    Attributes:
        name: of the input tensor.
        datatype: BYTES, UINT8, FP32 or another name of the protocol.
        shape: of one example, without the batch; -1 for any length, None if even the number of axes is unknown.
        read: makes preprocessed inputs [B, ...] of values [B, *shape]; raises DataError if it cannot.
        is_file: each value is the content of a file: base64 in JSON, and worth a thread of its own to decode.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    read: Callable[[Values], Tensor]
    is_file: bool = False


def preprocessed(shape: tuple[int, ...] | None = None) -> RequestForm:
    """Inputs that the caller has prepared as `Task.preprocessing` says."""
    return RequestForm("input", "FP32", shape, _as_given)


def _as_given(values: Values) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))  # a copy: raw data cannot be written to
