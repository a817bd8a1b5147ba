"""The branches of attention blocks: how an input's gradient divides among them, and whether they agree.

An input of a block reaches the loss in several ways, for example as keys and as values. A block calls `branch` for
each use; while `recording` is on, the gradient of each is known, and `compare` gives its cosines with the gradient
of the whole input. PyTorch's own `MultiheadAttention` is recorded without any call. Must not know tasks or data.

Source of the measurement: SGA (ECCV 2022), which found that keys and queries pull against values and skips.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[str, str]  # (block, input of it)


@dataclass(frozen=True, eq=False)
class _BranchUse:
    """One use of an input [B, T, C] in one forward pass of a block."""

    block: nn.Module
    place: Place
    branch: str
    value: Tensor


@dataclass
class Recorder:
    """The uses that the blocks of a model have recorded."""

    names: Mapping[nn.Module, str]
    uses: list[_BranchUse] = field(default_factory=list)

    def note(self, value: Tensor, block: nn.Module, given: str, name: str) -> Tensor:
        """A copy of `value` whose gradient is that of this branch alone."""
        if block not in self.names or not value.requires_grad or value.dim() != 3:
            return value
        copy, called = value.clone(), self.names[block]
        again = sum(1 for use in self.uses if use.block is block and (use.place[1], use.branch) == (given, name))
        place = (f"{called}, call {again + 1}" if again else called, given)
        self.uses.append(_BranchUse(block, place, name, copy))
        return copy

    def gradients(self, loss: Tensor) -> dict[Place, dict[str, Tensor]]:
        """By block and input, the gradient [B, T, C] of each branch; zero for one that the loss does not use."""
        if not self.uses:
            return {}
        values = [use.value for use in self.uses]
        found: dict[Place, dict[str, Tensor]] = {}
        grads = torch.autograd.grad(loss, values, allow_unused=True)
        for use, grad in zip(self.uses, grads, strict=True):
            found.setdefault(use.place, {})[use.branch] = torch.zeros_like(use.value) if grad is None else grad
        return found


_ACTIVE: ContextVar[Recorder | None] = ContextVar("attention_branches", default=None)


def branch(value: Tensor, block: nn.Module, given: str, name: str) -> Tensor:
    """`value`, an input [B, T, C] of `block`, for one of its uses; only while `recording`, a copy.

    Args:
        given: which input of the block it is, such as `source`.
        name: which use of it, such as `key`.
    """
    recorder = _ACTIVE.get()
    return value if recorder is None else recorder.note(value, block, given, name)


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Record the branches of the blocks in `model` during one forward pass."""
    recorder = Recorder({module: name or "model" for name, module in model.named_modules()})
    token = _ACTIVE.set(recorder)
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks.enter_context(module.register_forward_pre_hook(_separate, with_kwargs=True))
        try:
            yield recorder
        finally:
            _ACTIVE.reset(token)


def _separate(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give query, key and value of PyTorch's block a copy of their own; equal tensors are one input."""
    names = ("query", "key", "value")
    given = {**dict(zip(names, args, strict=False)), **{k: v for k, v in kwargs.items() if k in names}}
    uses: dict[int, list[str]] = {}
    for name in names:
        uses.setdefault(id(given[name]), []).append(name)
    mine = {name: _examples_first(given[name], block, "/".join(uses[id(given[name])]), name) for name in names}
    rest = {key: value for key, value in kwargs.items() if key not in names}
    return (*(mine[name] for name in names), *args[3:]), rest


def _examples_first(value: Tensor, block: nn.Module, given: str, name: str) -> Tensor:
    """As `branch`, for a block that may take tokens before examples."""
    if getattr(block, "batch_first", True) or value.dim() != 3:
        return branch(value, block, given, name)
    return branch(value.transpose(0, 1), block, given, name).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class BranchCosines:
    """How one branch's gradient compares with the gradient at its input, which is the sum over its branches.

    Attributes:
        total_T: cosine with the sum over all branches, of each token with a gradient; float64, on the CPU.
        others_T: cosine with the sum over the other branches, of the same tokens; NaN if there is none.
        instance_B: cosine with the sum over all branches, of each example as a whole.
        length: the branch's norm over the sum of the norms of all branches, as a mean over examples.
    """

    block: str
    given: str
    branch: str
    total_T: Tensor
    others_T: Tensor
    instance_B: Tensor
    length: float

    @property
    def is_cut(self) -> bool:
        """Whether no gradient comes through this branch."""
        return self.length == 0

    def summary(self) -> dict[str, Any]:
        """Plain values for a table: means, and the share of tokens that pull against the others."""
        known_T = self.others_T[~self.others_T.isnan()]
        return {
            "block": self.block,
            "input": self.given,
            "branch": self.branch,
            "share": self.length,
            "token": _mean(self.total_T),
            "instance": _mean(self.instance_B),
            "others": _mean(known_T),
            "against": _mean((known_T < 0).double()),
        }


def compare(batches: list[dict[Place, dict[str, Tensor]]]) -> list[BranchCosines]:
    """The cosines over several batches of `Recorder.gradients`, in the order of the blocks."""
    found: dict[tuple[Place, str], list[BranchCosines]] = {}
    for batch in batches:
        for place, grads in batch.items():
            for name in grads:
                found.setdefault((place, name), []).append(_compared(place, name, grads))
    return [_joined(parts) for parts in found.values()]


def _compared(place: Place, name: str, grads: Mapping[str, Tensor]) -> BranchCosines:
    mine_BTC, all_BTC = grads[name].double(), torch.stack([g.double() for g in grads.values()]).sum(dim=0)
    norm_B = torch.stack([g.double().flatten(1).norm(dim=1) for g in grads.values()]).sum(dim=0)
    share_B = mine_BTC.flatten(1).norm(dim=1) / norm_B.clamp_min(torch.finfo(torch.float64).tiny)
    has_BT = mine_BTC.norm(dim=2) > 0
    has_B = has_BT.any(dim=1)
    return BranchCosines(
        *place,
        name,
        total_T=_cosine(mine_BTC[has_BT], all_BTC[has_BT]).cpu(),
        others_T=_cosine(mine_BTC[has_BT], (all_BTC - mine_BTC)[has_BT]).cpu(),
        instance_B=_cosine(mine_BTC.flatten(1)[has_B], all_BTC.flatten(1)[has_B]).cpu(),
        length=float(share_B.mean()),
    )


def _joined(parts: list[BranchCosines]) -> BranchCosines:
    first = parts[0]
    return BranchCosines(
        first.block,
        first.given,
        first.branch,
        total_T=torch.cat([part.total_T for part in parts]),
        others_T=torch.cat([part.others_T for part in parts]),
        instance_B=torch.cat([part.instance_B for part in parts]),
        length=sum(part.length for part in parts) / len(parts),
    )


def _cosine(one_NC: Tensor, other_NC: Tensor) -> Tensor:
    """[N]; NaN where one of the two is zero."""
    scale_N = one_NC.norm(dim=1) * other_NC.norm(dim=1)
    found_N: Tensor = (one_NC * other_NC).sum(dim=1) / scale_N  # 0 / 0 is NaN
    return found_N


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")
