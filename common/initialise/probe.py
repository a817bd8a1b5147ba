"""A model with one scale on each of its tensors, and the gradients of its loss as functions of these scales.

Called by the central form in `nio.py` and by clients. Works on any task through `task.loss`.

Legend: P scaled tensors, N weights, all tensors together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fednc.common.guide import Guide
from fednc.common.tasks.base import Batch, Task

WEIGHT_FLOOR, BIAS_FLOOR = 0.01, 0.0  # of scales: a weight never vanishes, a bias may
_TINY = 1e-30  # below any norm that is not zero


@dataclass(frozen=True)
class Gradient:
    """One sub-batch's gradient at the scales that are set; differentiable in the model's weights.

    Attributes:
        unit_N: the gradient's direction; zeros where it has none.
        norm: its length, [].
        loss: the mean loss, [].
    """

    unit_N: Tensor
    norm: Tensor
    loss: Tensor


class Probe:
    """One model at its first weights p_0, times scales: p = alpha_p p_0.

    Attributes:
        names: tensors that have a scale: all that are shared and trained and not zero.
        floor_P: least value of each scale.
    """

    def __init__(self, task: Task, model: nn.Module, guide: Guide, shared: Collection[str]) -> None:
        """`model` is changed in place, by `set`; leave it with `set(ones)`."""
        self._task, self._model, self._guide = task, model, guide
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and name in shared}
        self._scaled = {name: p for name, p in trained.items() if p.detach().any()}
        self._start = {name: p.detach().clone() for name, p in self._scaled.items()}
        normed = _batch_norm_parameters(model)
        self._differentiated = [p for name, p in trained.items() if name not in normed]
        self.names = list(self._scaled)
        self.floor_P = floors(self.names)

    def set(self, scale_P: Tensor) -> None:
        """Give the model the weights alpha_p p_0."""
        with torch.no_grad():
            for scale, (name, p) in zip(scale_P.tolist(), self._scaled.items(), strict=True):
                torch.mul(self._start[name], scale, out=p)

    def gradient(self, batch: Batch) -> Gradient:
        """Of the mean loss over `batch`, without batch normalisation's own parameters (as the source has it)."""
        loss, _ = self._task.loss(self._model, batch, self._guide)
        found = torch.autograd.grad(loss, self._differentiated, create_graph=True, materialize_grads=True)
        flat_N = torch.cat([one.reshape(-1) for one in found])
        norm = torch.linalg.vector_norm(flat_N)
        return Gradient(flat_N / norm.clamp_min(_TINY), norm, loss.detach())

    def slope(self, value: Tensor) -> Tensor:
        """float64 [P]: d value / d alpha_p = <d value / dp, p_0>, by one double backward."""
        found = torch.autograd.grad(value, list(self._scaled.values()), materialize_grads=True)
        slopes = [(one.double() * self._start[name]).sum() for name, one in zip(self.names, found, strict=True)]
        return torch.stack(slopes).cpu()


def floors(names: Collection[str]) -> Tensor:
    """float64 [P]: the least scale of each named tensor."""
    least = [BIAS_FLOOR if name.rpartition(".")[2] == "bias" else WEIGHT_FLOOR for name in names]
    return torch.tensor(least, dtype=torch.float64)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, but batch normalisation uses each batch's own statistics and remembers none."""
    training = {module: module.training for module in model.modules()}
    tracking = {module: module.track_running_stats for module in training if isinstance(module, _BatchNorm)}
    model.eval()
    for module in tracking:
        module.training, module.track_running_stats = True, False
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for module, tracked in tracking.items():
            module.track_running_stats = tracked


def _batch_norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules() if isinstance(module, _BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    }  # fmt: skip
