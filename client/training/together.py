"""A round of training of several clients in one process, in lockstep: each step is one batch of models.

For comparisons of small models, whose steps cost more in Python than in arithmetic (docs/compare.md says where it
pays). Batches, optimisers and additions of methods are those of `trainer.train`; only sums may round differently.
Called by `bench/batched_grid.py`. Knows no task and no method.

Legend: M models (clients) in one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fednc.client.training.trainer import LocalResult, LocalWork, batches_of, freeze
from fednc.common.errors import FedncError
from fednc.common.learning.optimisers import learning_rate, make_optimiser
from fednc.common.learning.round_context import Guide
from fednc.common.methods import registry
from fednc.common.tasks.api import Batch, Task

_NOT_ALIKE = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd  # change their state, or draw


class NotTogetherError(FedncError):
    """These clients cannot be trained in one batch. Nothing was changed."""


def train_together(works: Sequence[LocalWork]) -> list[LocalResult]:
    """Train each client's model in place, as `trainer.train` does.

    Clients whose next batches have the same shapes take a step together; one without a next batch is done.

    Raises:
        NotTogetherError: the task, a method or a layer does not allow it.
    """
    if reason := _why_not(works):
        raise NotTogetherError(reason)
    drawn = [work.generator.get_state() for work in works]
    members = [_Member(work) for work in works]
    optimiser = _optimiser(works[0], [p for one in members for p in one.params.values() if p.requires_grad])
    for number, group in enumerate(_groups(members)):
        try:
            _step(group, optimiser)
        except RuntimeError as e:
            if number:
                raise
            # It is the batching that refuses: a random draw, a decision by a value, an unknown operation.
            for work, state in zip(works, drawn, strict=True):
                work.generator.set_state(state)
            raise NotTogetherError(f"PyTorch cannot batch the model: {e}") from e
    return [one.result() for one in members]


def _why_not(works: Sequence[LocalWork]) -> str:
    """What forbids it that is known before the first step; "" if nothing is."""
    first = works[0]
    task, own = first.task, type(first.task)
    if any(work.section != first.section for work in works) or first.section.accumulate > 1:
        return "clients have unlike [train], or several batches share a step"
    if first.section.precision != "fp32" or first.guide.etf_KD.device.type != "cpu":
        return "it was not measured on GPUs and in low precision"
    if own.training_step is not Task.training_step or own.optimiser_parts is not Task.optimiser_parts:
        return f"task {task.name!r} has training steps of its own"
    if task.kept_optimisers():
        return f"clients of task {task.name!r} keep their optimisers"
    if comparing := [one.name for one in registry.parts(first.guide.method) if one.compares_models]:
        return f"method {comparing[0]!r} compares models"
    odd = (type(layer).__name__ for layer in first.model.modules() if isinstance(layer, _NOT_ALIKE))
    return next((f"layer {name} changes its state or draws" for name in odd), "")


@dataclass(eq=False)
class _Member:
    """One client in the round."""

    work: LocalWork
    params: dict[str, nn.Parameter] = field(init=False)
    batches: Iterator[Batch] = field(init=False)
    examples: int = 0
    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        work = self.work
        work.model.train()
        freeze(work.model, frozenset(work.frozen))
        self.params = dict(work.model.named_parameters())
        self.batches = batches_of(work.data, work.section, work.generator, steps=0)

    def add(self, examples: int, losses: Mapping[str, Tensor]) -> None:
        """Count one step."""
        self.examples += examples
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value * examples

    def result(self) -> LocalResult:
        """The totals of all steps."""
        losses = {name: float(value) / self.examples for name, value in self.sums.items()}
        return LocalResult(self.examples, self.steps, losses)


_Group = list[tuple[_Member, Batch]]


def _optimiser(work: LocalWork, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """One for all clients: it treats each tensor alone, and leaves out those that have no gradient in a step."""
    return make_optimiser(params, work.section, learning_rate(work.section, work.server_round, work.rounds))


def _groups(members: Sequence[_Member]) -> Iterator[_Group]:
    """The next batch of every client that has one, grouped by shapes, until none is left."""
    while True:
        found: dict[tuple[torch.Size, ...], _Group] = {}
        for one in members:
            if (batch := next(one.batches, None)) is not None:
                found.setdefault(tuple(tensor.shape for tensor in batch), []).append((one, batch))
        if not found:
            return
        yield from found.values()


def _step(group: _Group, optimiser: torch.optim.Optimizer) -> None:
    """One step of each client in the group. Models, additions and totals change only if it can be taken."""
    loss_M, parts = _losses(group)
    named = [{k: v for one in member.work.additions for k, v in one.penalties().items()} for member, _ in group]
    loss_M = torch.stack([loss + sum(one.values()) for loss, one in zip(loss_M, named, strict=True)])
    optimiser.zero_grad(set_to_none=True)
    loss_M.sum().backward()  # no model depends on another one's parameters
    for member, _ in group:
        for addition in member.work.additions:
            addition.on_gradients()
        if clip := member.work.section.clip_norm:
            nn.utils.clip_grad_norm_(member.params.values(), clip)
    optimiser.step()
    for i, (member, batch) in enumerate(group):
        of_task = {name: part_M[i] for name, part_M in {"loss": loss_M, **parts}.items()}
        member.add(member.work.task.batch_size_of(batch), of_task | named[i])


def _losses(group: _Group) -> tuple[Tensor, dict[str, Tensor]]:
    """[M]: each client's loss of its batch, as `Task.loss` computes it, and its parts by name."""
    works = [member.work for member, _ in group]
    loss_of = _Loss(works[0])
    if len(group) == 1:
        loss, parts = loss_of(group[0][1], {})
        return loss[None], {name: part[None] for name, part in parts.items()}
    params = _stacked([member.params for member, _ in group])
    buffers = _unlike([dict(work.model.named_buffers()) for work in works])
    guides = _unlike([_tensors_of(work.guide) for work in works])
    columns = tuple(map(_stack, zip(*(batch for _, batch in group), strict=True)))

    def of_one(state: dict[str, Tensor], guide: dict[str, Tensor], batch: Batch) -> Any:
        return torch.func.functional_call(loss_of, state, (batch, guide))

    state = {f"model.{name}": tensor for name, tensor in {**params, **buffers}.items()}
    found: tuple[Tensor, dict[str, Tensor]] = torch.func.vmap(of_one)(state, guides, columns)
    return found


class _Loss(nn.Module):
    """`Task.loss` as a module, so that its model can be called with other tensors."""

    def __init__(self, work: LocalWork) -> None:
        super().__init__()
        self._work, self.model = work, work.model

    def forward(self, batch: Batch, guide: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._work.task.loss(self.model, batch, replace(self._work.guide, **guide))  # type: ignore[arg-type]


def _tensors_of(guide: Guide) -> dict[str, Tensor]:
    return {name: value for name, value in vars(guide).items() if isinstance(value, Tensor)}


def _unlike(clients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that differ between clients, stacked. The others can be used as the first client has them."""
    differ = [n for n, one in clients[0].items() if not all(torch.equal(one, other[n]) for other in clients[1:])]
    return _stacked([{name: client[name] for name in differ} for client in clients])


def _stacked(clients: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: _stack([client[name] for client in clients]) for name in clients[0]}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[M, ...] without the channels-last order of the tensors, which `vmap` does not know."""
    return torch.stack(list(tensors)).contiguous()
