"""A model with one scale per tensor, and the gradients of its loss as functions of these scales.

Called by the central form in `nio.py` and by clients. Works for any task through `task.loss`.

Legend: P scaled tensors, N weights, all tensors together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch, Task

WEIGHT_FLOOR, BIAS_FLOOR = 0.01, 0.0  # of scales: a weight must not vanish, a bias may
_TINY = 1e-30  # below any norm that is not zero


@dataclass(frozen=True)
class Gradient:
    """One sub-batch's gradient at the current scales; optionally differentiable in the model's weights.

    Attributes:
        unit_N: the gradient's direction; zeros if it has none.
        norm: its length, [].
        loss: the mean loss, [].
    """

    unit_N: Tensor
    norm: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Layout:
    """Which tensors of a model are scaled, and which are part of gradients; the same on both sides.

    Attributes:
        scaled: names of the P tensors that are shared, trained and not zero.
        differentiated: names of tensors in gradients: shared and trained, but not batch normalisation's own.
        weights: N, number of values in a gradient.
    """

    scaled: tuple[str, ...]
    differentiated: tuple[str, ...]
    weights: int

    @classmethod
    def of(cls, model: nn.Module, shared: Collection[str]) -> Layout:
        """The layout of a model with its initial weights."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and name in shared}
        normed = _batch_norm_parameters(model)
        differentiated = {name: p for name, p in trained.items() if name not in normed}
        return cls(
            scaled=tuple(name for name, p in trained.items() if p.detach().any()),
            differentiated=tuple(differentiated),
            weights=sum(p.numel() for p in differentiated.values()),
        )

    @property
    def floor_P(self) -> Tensor:
        """float64 [P]: the smallest scale of each tensor."""
        least = [BIAS_FLOOR if name.rpartition(".")[2] == "bias" else WEIGHT_FLOOR for name in self.scaled]
        return torch.tensor(least, dtype=torch.float64)


class Probe:
    """A model whose weights are its initial weights p_0 times scales: p = alpha_p p_0.

    Attributes:
        layout: what is scaled and differentiated.
    """

    def __init__(self, task: Task, model: nn.Module, guide: Guide, shared: Collection[str]) -> None:
        """`set` changes `model` in place; `set(ones)` restores it."""
        self._task, self._model, self._guide = task, model, guide
        self.layout = Layout.of(model, shared)
        parameters = dict(model.named_parameters())
        self._scaled = [parameters[name] for name in self.layout.scaled]
        self._start = [p.detach().clone() for p in self._scaled]
        self._differentiated = [parameters[name] for name in self.layout.differentiated]

    def set(self, scale_P: Tensor) -> None:
        """Set the model's weights to alpha_p p_0."""
        with torch.no_grad():
            for scale, start, p in zip(scale_P.tolist(), self._start, self._scaled, strict=True):
                p.copy_(start * scale)

    def gradient(self, batch: Batch, *, for_slope: bool = True) -> Gradient:
        """Gradient of the mean loss over `batch`, without batch normalisation's own parameters (as in the paper).

        Args:
            batch: examples.
            for_slope: whether the result can be differentiated, which takes longer.
        """
        loss, _ = self._task.loss(self._model, batch, self._guide)
        found = torch.autograd.grad(loss, self._differentiated, create_graph=for_slope, materialize_grads=True)
        flat_N = torch.cat([one.reshape(-1) for one in found])
        norm = torch.linalg.vector_norm(flat_N)
        return Gradient(flat_N / norm.clamp_min(_TINY), norm, loss.detach())

    def slope(self, value: Tensor) -> Tensor:
        """float64 [P]: d value / d alpha_p = <d value / dp, p_0>, by one double backward."""
        found = torch.autograd.grad(value, self._scaled, materialize_grads=True)
        slopes = [(one.double() * start).sum() for start, one in zip(self._start, found, strict=True)]
        return torch.stack(slopes).cpu()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, except that batch normalisation uses each batch's own statistics and stores none."""
    training = {module: module.training for module in model.modules()}
    normed = [module for module in training if isinstance(module, _BatchNorm)]
    tracking = {module: module.track_running_stats for module in normed}
    model.eval()
    for norm in tracking:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for norm, tracked in tracking.items():
            norm.track_running_stats = tracked


def _batch_norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
