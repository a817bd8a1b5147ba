"""The input of an exported graph: what the caller gives, and the part of the preprocessing that the graph does.

A task returns one from `Task.graph_input`. torch.export captures `prepare`: it must consist of tensor
operations. Knows no format of export.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """The input of an exported graph.

    Attributes:
        name: of the input.
        dtype: of its values.
        shape: of one example, without the batch; None if the task cannot tell.
        prepare: preprocessed inputs [B, ...] from values [B, *shape].
        raw_of: the values that `prepare` makes these preprocessed inputs of; for tests.
        note: what the caller must do first.
        reading: lines of Python that read one example into a NumPy array with the name of the input, `np` being
            NumPy; empty: an array of zeros stands for it.
        no_onnx: why the graph cannot be an ONNX file, for example an operation that ONNX lacks; empty if it can.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    prepare: Callable[[Tensor], Tensor]
    raw_of: Callable[[Tensor], Tensor]
    note: str
    reading: tuple[str, ...] = ()
    no_onnx: str = ""


def preprocessed_input(shape: tuple[int, ...] | None = None) -> GraphInput:
    """Inputs that the caller prepares as `Task.preprocessing` says; the graph changes nothing."""
    return GraphInput(
        name="inputs",
        dtype=torch.float32,
        shape=shape,
        prepare=_unchanged,
        raw_of=_unchanged,
        note="prepare inputs as `preprocessing` says",
    )


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs
