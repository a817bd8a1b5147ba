"""A round of training of several clients in one process, in lockstep: each step is one batch of models.

For comparisons of small models, whose steps cost more in Python than in arithmetic (docs/compare.md says where it
pays). Batches, optimisers and additions of methods are those of `trainer.train`; only sums may round differently.
Called by `bench/batched_grid.py`. Knows no task and no method.

Legend: M models (clients) in one step.
"""

from __future__ import annotations

import math
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

# Measured, see docs/compare.md: below and above these a batch of models is no faster.
LEAST_MODELS = 2.5  # in a step, on average
MOST_NUMBERS = 4096  # of the inputs of one client's batch
_NOT_ALIKE = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd  # change their state, or draw


class NotTogetherError(FedncError):
    """These clients cannot be trained in one batch, or it would be slower. Nothing was changed."""


def train_together(works: Sequence[LocalWork]) -> list[LocalResult]:
    """Train each client's model in place, as `trainer.train` does.

    Clients whose next batches have the same shapes take a step together; one without a next batch is done.

    Raises:
        NotTogetherError: the data, the task, a method or a layer does not allow it.
    """
    if reason := _why_not(works):
        raise NotTogetherError(reason)
    drawn = [work.generator.get_state() for work in works]
    members = [_Member(work) for work in works]
    steps = _Steps(members)
    for number, group in enumerate(_groups(members)):
        try:
            steps.take(group)
        except RuntimeError as e:
            if number:
                raise
            # It is the batching that refuses: a random draw, a decision by a value, an unknown operation.
            for work, state in zip(works, drawn, strict=True):
                work.generator.set_state(state)
            raise NotTogetherError(f"PyTorch cannot batch the model: {e}") from e
    return [one.result() for one in members]


def _why_not(works: Sequence[LocalWork]) -> str:
    """What is against it that is known before the first step; "" if nothing is."""
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
    for layer in first.model.modules():
        if isinstance(layer, _NOT_ALIKE):
            return f"layer {type(layer).__name__} changes its state or draws"
    largest = max((work.data for work in works), key=lambda data: data.examples)
    numbers = task.inputs_of(next(iter(largest.eval_batches(first.section.batch)))).numel()
    if numbers > MOST_NUMBERS:
        return f"a batch has {numbers} numbers, and more than {MOST_NUMBERS} do not pay"
    models = models_per_step([work.data.examples for work in works], first.section.batch)
    if models < LEAST_MODELS:
        return f"a step would have {models:.1f} models, and less than {LEAST_MODELS} do not pay"
    return ""


def models_per_step(examples: Sequence[int], batch: int) -> float:
    """Mean number of clients that take a step together, from the examples of each: last batches differ."""
    steps = sum(math.ceil(n / batch) for n in examples)
    last = {divmod(n, batch) for n in examples if n % batch}  # in which step, and how large
    return steps / (max(examples) // batch + len(last))


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


def _groups(members: Sequence[_Member]) -> Iterator[_Group]:
    """The next batch of every client that has one, grouped by shapes, most clients first; until none is left."""
    while True:
        found: dict[tuple[torch.Size, ...], _Group] = {}
        for one in members:
            if (batch := next(one.batches, None)) is not None:
                found.setdefault(tuple(tensor.shape for tensor in batch), []).append((one, batch))
        if not found:
            return
        yield from sorted(found.values(), key=len, reverse=True)


class _Steps:
    """The steps of one round, with one optimiser for all clients.

    It treats each tensor alone, and leaves out those without a gradient: clients that take no part in a step.
    """

    def __init__(self, members: Sequence[_Member]) -> None:
        works = [member.work for member in members]
        first = works[0]
        every = [param for member in members for param in member.params.values() if param.requires_grad]
        rate = learning_rate(first.section, first.server_round, first.rounds)
        self._optimiser = make_optimiser(every, first.section, rate)
        self._loss, self._clip = _Loss(first), first.section.clip_norm
        self._guides = _unlike([_tensors_of(work.guide) for work in works])
        self._buffers = _unlike([dict(work.model.named_buffers()) for work in works])

    def take(self, group: _Group) -> None:
        """One step of each client in the group. Nothing changes unless all of them can take it."""
        loss_M, parts = self._losses(group)
        named = [
            {k: v for one in member.work.additions for k, v in one.penalties().items()} for member, _ in group
        ]
        if any(named):
            loss_M = torch.stack([loss + sum(one.values()) for loss, one in zip(loss_M, named, strict=True)])
        self._optimiser.zero_grad(set_to_none=True)
        loss_M.sum().backward()  # no model depends on the parameters of another
        for member, _ in group:
            for addition in member.work.additions:
                addition.on_gradients()
            if self._clip:
                nn.utils.clip_grad_norm_(member.params.values(), self._clip)
        self._optimiser.step()
        told = {"loss": loss_M.detach(), **parts}
        for i, (member, batch) in enumerate(group):
            of_method = {name: value.detach() for name, value in named[i].items()}
            losses = {name: part_M[i] for name, part_M in told.items()} | of_method
            member.add(member.work.task.batch_size_of(batch), losses)

    def _losses(self, group: _Group) -> tuple[Tensor, dict[str, Tensor]]:
        """[M]: each client's loss of its batch, as `Task.loss` computes it, and its parts by name."""
        works = [member.work for member, _ in group]
        if len(group) == 1:
            (work,), ((_, batch),) = works, group
            loss, parts = work.task.loss(work.model, batch, work.guide)
            return loss[None], {name: part[None] for name, part in parts.items()}
        params = _stacked([member.params for member, _ in group])
        buffers = _stacked([dict(work.model.named_buffers()) for work in works], self._buffers)
        guides = _stacked([_tensors_of(work.guide) for work in works], self._guides)
        columns = tuple(map(_stack, zip(*(batch for _, batch in group), strict=True)))

        def of_one(state: dict[str, Tensor], guide: dict[str, Tensor], batch: Batch) -> Any:
            return torch.func.functional_call(self._loss, state, (batch, guide))

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


def _unlike(clients: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names of the tensors that differ between clients. The others can be used as the first client has them."""
    first, *others = clients
    return [name for name, one in first.items() if not all(torch.equal(one, other[name]) for other in others)]


def _stacked(clients: Sequence[Mapping[str, Tensor]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    return {name: _stack([one[name] for one in clients]) for name in (clients[0] if names is None else names)}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[M, ...] without the channels-last order of the tensors, which `vmap` does not know."""
    return torch.stack(list(tensors)).contiguous()
