"""Low-rank adapters (LoRA, arXiv 2106.09685): a layer's weight W becomes W + B A, and only B and A are trained.

Added by `Task.new_model` where the run file asks for them, merged when a model is exported. B starts at zero, so a
new model computes what it would without adapters. The state dict names W
`<layer>.parametrizations.weight.original` and the two factors `<layer>.parametrizations.weight.0.up` and `.down`.
Knows no task.

Legend: O outputs of a layer, I inputs of a layer times its kernel's size, R rank.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fednc.common.errors import ConfigError

_ADAPTER = re.compile(r"(^|\.)parametrizations\.weight\.\d+\.(up|down)$")
_ORIGINAL = "parametrizations.weight.original"


class LowRank(nn.Module):
    """W + B A, with B `up` [O, R] and A `down` [R, I]; a kernel is treated as a matrix [O, I]."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = _sides(weight)
        self.up = nn.Parameter(torch.zeros(outputs, rank, dtype=weight.dtype))
        self.down = nn.Parameter(torch.empty(rank, inputs, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + (self.up @ self.down).view_as(weight)


def add(model: nn.Module, rank: int, prefixes: Iterable[str]) -> None:
    """Add adapters to all linear and convolution layers below `prefixes`, drawn from torch's global generator.

    A layer whose adapter would be no smaller than its weight gets none.

    Raises:
        ConfigError: no layer is left.
    """
    places = tuple(prefixes)
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d) and f"{name}.".startswith(places)
    ]
    chosen = [layer for layer in layers if rank * sum(_sides(layer.weight)) < layer.weight.numel()]
    if not chosen:
        raise ConfigError(
            f"task.adapter_rank = {rank}: none of {len(layers)} linear and convolution layers is large enough for "
            "adapters of this rank. Lower it, or set it to 0."
        )
    for layer in chosen:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def is_adapter(key: str) -> bool:
    """Whether a key of a state dict is one of an adapter's factors."""
    return _ADAPTER.search(key) is not None


def plain_name(key: str) -> str:
    """The key that a tensor has in a model without adapters."""
    return key.replace(_ORIGINAL, "weight")


def merged(model: nn.Module) -> nn.Module:
    """`model` if it has no adapters, else a copy with them added to the weights, and with ordinary names."""
    if not any(map(parametrize.is_parametrized, model.modules())):
        return model
    model = copy.deepcopy(model)
    for module in [each for each in model.modules() if parametrize.is_parametrized(each)]:
        weight = getattr(module, "weight").detach()  # noqa: B009 - mypy takes it for a submodule
        # torch's own way to remove one changes the class, which a copy shares with its original
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        module.register_parameter("weight", nn.Parameter(weight))
    return model


def _sides(weight: Tensor) -> tuple[int, int]:
    """(O, I)."""
    return weight.shape[0], weight[0].numel()
