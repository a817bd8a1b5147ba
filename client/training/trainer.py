"""A client's local work: train towards the guide, and sum features by class. Called by the app.

One trainer for all methods and tasks; the guide, the methods' additions and the task make the difference. No gRPC
here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fednc.client.link.work_hooks import Hooks, LocalProgress
from fednc.client.training.cuda_graphs import Steps, beside_default_stream, capture_for
from fednc.client.training.kept_optimisers import KeptOptimisers
from fednc.common.config.tables import TrainSection
from fednc.common.errors import ConfigError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.optimisers import SGD, learning_rate, make_optimiser
from fednc.common.learning.round_context import Guide
from fednc.common.methods import registry
from fednc.common.methods.api import Addition
from fednc.common.tasks.api import Batch, Task, TaskData
from fednc.common.tasks.classifier import classifier
from fednc.common.tasks.evaluation import evaluation_batches

_REPORT_EVERY_S = 0.25


@dataclass(frozen=True)
class LocalResult:
    """The result of one round of local training; losses are means over examples.

    Attributes:
        steps: of the optimiser. Policies limit how few an update may have.
        optimisers: the state of `Task.kept_optimisers`, for the next round; it stays on the client.
    """

    examples: int
    steps: int
    losses: dict[str, float]
    optimisers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """The arguments of `train` for one client's round."""

    task: Task
    model: nn.Module
    data: TaskData
    guide: Guide
    section: TrainSection
    server_round: int
    generator: torch.Generator
    hooks: Hooks
    additions: Sequence[Addition]
    frozen: Collection[str]
    rounds: int
    optimisers: Mapping[str, Tensor]


def train(
    task: Task,
    model: nn.Module,
    data: TaskData,
    guide: Guide,
    section: TrainSection,
    server_round: int,
    generator: torch.Generator,
    hooks: Hooks,
    additions: Sequence[Addition] = (),
    frozen: Collection[str] = (),
    rounds: int = 1,
    steps: int = 0,
    optimisers: Mapping[str, Tensor] = MappingProxyType({}),
) -> LocalResult:
    """Train `model` in place for the section's epochs, with the methods' `additions`.

    Args:
        server_round: the round's number for the learning-rate schedule.
        frozen: keys of the state dict that must not change, for the rest of the run.
        rounds: number of rounds for the schedule.
        steps: train on so many batches instead of epochs.
        optimisers: `LocalResult.optimisers` of this client's round before; empty: all optimisers are new.

    Raises:
        WorkCancelledError: the server no longer waits for this work; the model is only partly trained.
    """
    model.train()
    if frozen:
        freeze(model, frozenset(frozen))
    device = guide.etf_KD.device
    guide = replace(guide, companions={k: v for one in additions for k, v in one.companions().items()})
    descent = _Descent(task, model, section, learning_rate(section, server_round, rounds), device, additions)
    kept = KeptOptimisers(descent.optimisers, model, task.kept_optimisers())
    kept.restore(optimisers)

    def step(batch: Batch) -> dict[str, Tensor]:
        return task.training_step(model, batch, guide, descent)

    replayable = task.same_for_each_batch(guide) and all(
        one.same_for_each_batch for one in registry.parts(guide.method)
    )
    replayable &= section.optimizer == SGD and section.accumulate == 1
    take = Steps(step, capture_for(device) if replayable else None)
    meter = _Meter(hooks, total=steps or section.epochs * math.ceil(data.examples / section.batch))
    with beside_default_stream(device):
        for batch in batches_of(data, section, generator, steps):
            hooks.check()
            meter.add(task.batch_size_of(batch), take(batch))
        descent.finish()
    return replace(meter.result(section.accumulate), optimisers=kept.state())


def batches_of(data: TaskData, section: TrainSection, generator: torch.Generator, steps: int) -> Iterator[Batch]:
    """The batches of the section's epochs; with `steps`, so many batches, of as many epochs as that takes."""
    epochs = count() if steps else range(section.epochs)
    every = (batch for _ in epochs for batch in data.train_batches(section.batch, generator))
    return islice(every, steps or None)


def freeze(model: nn.Module, keys: frozenset[str], prefix: str = "") -> None:
    """Turn off gradients of parameters among `keys`. A module whose whole state is among them goes to eval mode.

    So running statistics do not change either, and nothing in such a module is random.
    """
    own = {prefix + key for key in model.state_dict()}
    if own and own <= keys:
        model.eval().requires_grad_(False)
        return
    for name, param in model.named_parameters(recurse=False):
        param.requires_grad_(param.requires_grad and prefix + name not in keys)
    for name, child in model.named_children():
        freeze(child, keys, f"{prefix}{name}.")


class _Descent:
    """The optimisers of one round; `Task.training_step` takes its steps with it."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        section: TrainSection,
        lr: float,
        device: torch.device,
        additions: Sequence[Addition],
    ) -> None:
        self._task, self._section, self._device, self._additions = task, section, device, additions
        parts = {
            name: [p for p in found if p.requires_grad] for name, found in task.optimiser_parts(model).items()
        }
        self._params = {name: found for name, found in parts.items() if found}
        if len(self._params) > 1 and any(type(one).on_gradients is not Addition.on_gradients for one in additions):
            raise ConfigError(
                f"the method works on the gradients of the whole model at once, and task {task.name!r} has "
                "several optimisers. Use fedavg, fedprox or feddyn."
            )
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        for name, found in self._params.items():
            mine = task.optimiser_section(name, section)
            rate = lr if mine.lr == section.lr else lr * mine.lr / section.lr
            self.optimisers[name] = make_optimiser(found, mine, rate, fused=device.type == "cuda")
        self._waiting = dict.fromkeys(self._params, 0)  # batches whose gradients are computed but not used yet

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """See Stepper."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._section.precision == "bf16"):
            loss, parts = self._task.loss(model, batch, guide)
            for one in self._additions:
                for name, penalty in one.penalties().items():
                    loss, parts = loss + penalty, {**parts, name: penalty.detach()}
        return loss, parts

    def descend(self, loss: Tensor, part: str = "") -> None:
        """See Stepper."""
        if part not in self.optimisers:
            return  # the whole part is frozen
        if len(self._params) > 1:
            self._descend_alone(loss, part)
            return
        if not self._waiting[part]:
            self.optimisers[part].zero_grad(set_to_none=True)
        loss.backward()
        self._waiting[part] += 1
        if self._waiting[part] >= self._section.accumulate:
            self._step(part)

    def _descend_alone(self, loss: Tensor, part: str) -> None:
        """Compute gradients only for this part's parameters, because the loss must not affect the others."""
        params = self._params[part]
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        for param, grad in zip(params, grads, strict=True):
            waiting = param.grad if self._waiting[part] else None
            param.grad = grad if waiting is None else waiting if grad is None else waiting + grad
        self._waiting[part] += 1
        if self._waiting[part] >= self._section.accumulate:
            self._step(part)

    def _step(self, part: str) -> None:
        params, batches = self._params[part], self._waiting[part]
        if batches > 1:
            for param in params:
                if param.grad is not None:
                    param.grad /= batches
        for one in self._additions:
            one.on_gradients()
        if self._section.clip_norm:
            nn.utils.clip_grad_norm_(params, self._section.clip_norm)
        self.optimisers[part].step()
        self._waiting[part] = 0

    def finish(self) -> None:
        """Use the gradients that are still accumulated at the end of the round."""
        for part, batches in self._waiting.items():
            if batches:
                self._step(part)


class _Meter:
    """Sums losses on the device (without synchronising at each step) and reports progress at intervals."""

    def __init__(self, hooks: Hooks, total: int) -> None:
        self._hooks, self._total = hooks, total
        self._sums: dict[str, Tensor] = {}
        self._examples = self._steps = 0
        self._started = self._reported = time.monotonic()

    def add(self, examples: int, losses: Mapping[str, Tensor]) -> None:
        """Count one step."""
        self._examples += examples
        self._steps += 1
        for name, value in losses.items():
            summed = value.detach() * examples
            self._sums[name] = self._sums[name] + summed if name in self._sums else summed
        now = time.monotonic()
        if now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._hooks.report(self._step(float(losses["loss"]), now))

    def _step(self, loss: float, now: float) -> LocalProgress:
        speed = self._examples / max(1e-9, now - self._started)
        memory = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return LocalProgress(self._steps, self._total, loss, speed, memory)

    def result(self, batches_per_step: int) -> LocalResult:
        """The totals of all steps. Sends a last report, so that short rounds are reported too."""
        now = time.monotonic()
        losses = {name: float(value) / self._examples for name, value in self._sums.items()}
        self._hooks.report(self._step(losses.get("loss", 0.0), now))
        return LocalResult(self._examples, math.ceil(self._steps / batches_per_step), losses)


def class_sums(
    task: Task,
    model: nn.Module,
    data: TaskData,
    batch: int,
    hooks: Hooks,
    summed_K: Tensor,
    *,
    moment: bool,
) -> ClassSums:
    """Sums and counts of unit features of each class: evaluation mode, no augmentation, one pass.

    Sums on the model's device, so that no batch has to wait, and returns the sums on the CPU.

    Args:
        summed_K: bool, classes to sum.
        moment: whether to include second moments.
    """
    device = next(model.parameters()).device
    summed_K, sums = summed_K.to(device), task.no_class_sums(device, moment=moment)
    for piece in evaluation_batches(model, data, batch, hooks.check):
        feat_BD, label_B = classifier(task).embed(model, piece)
        sums.add_batch(torch.where(summed_K[label_B.reshape(-1)].unsqueeze(1), feat_BD, 0.0), label_B)
    sums.count_K.mul_(summed_K)
    return sums.to(torch.device("cpu"))
