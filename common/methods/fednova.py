"""FedNova: changes are averaged per local step, so that a client that takes more steps does not pull harder."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from fednc.common.config.tables import TrainSection
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, ServerRound, Tensors


class FedNova(Method):
    """Averages the change per local step, times the mean steps (Wang et al., NeurIPS 2020, arXiv 2007.07481).

    A client sends its model with the change divided by its steps. The server knows the mean number of steps from
    the examples that clients announced: none can lengthen the federation's step by a number that it makes up.
    """

    name = "fednova"
    preset = PLAIN
    same_for_each_batch = acts_on_gradients = True

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return PerStep(start)

    def step(self, reached: ServerRound) -> ServerRound:
        """w <- w + tau (mean - w), with tau the clients' mean effective steps, weighted as models are."""
        train, before = reached.train, reached.before
        worth = [effective_steps(optimiser_steps(n, train), train) for n in reached.examples]
        weighted = [n * steps for n, steps in zip(reached.examples, worth, strict=True)]
        tau = math.fsum(weighted) / sum(reached.examples)
        moved = {key: before[key] + tau * (mean - before[key]) for key, mean in reached.mean.items()}
        return replace(reached, mean=moved)


class PerStep(Addition):
    """Divides the change of each parameter that the server steps by the number of steps, and of nothing else."""

    def __init__(self, start: LocalRound) -> None:
        params = start.model.named_parameters(remove_duplicate=False)
        self._start = {name: p.detach().clone() for name, p in params if name in start.stepped}
        self._train = start.train
        device = next(start.model.parameters()).device
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # counted there: steps may be replayed

    def on_gradients(self) -> None:
        """See Addition."""
        self._steps += 1

    def outgoing(self, trained: Tensors) -> Tensors:
        """See Addition."""
        tau = effective_steps(int(self._steps), self._train)
        start = self._start
        return {k: start[k] + (value - start[k]) / tau if k in start else value for k, value in trained.items()}


def optimiser_steps(examples: int, train: TrainSection) -> int:
    """Steps of the optimiser in one round over so many examples; several batches may share one."""
    return math.ceil(train.epochs * math.ceil(examples / train.batch) / train.accumulate)


def effective_steps(steps: int, train: TrainSection) -> float:
    """Plain steps that `steps` of SGD with momentum rho are worth: the sum over s of (1 - rho^s) / (1 - rho).

    Any other optimiser scales its steps itself, so each counts once.
    """
    rho = train.momentum
    if not rho or not train.is_plain_sgd:
        return float(steps)
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


METHOD = FedNova
