"""FedNova: averages changes per local step, so that a client that takes more steps has no more influence."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from fednc.common.config.tables import TrainSection
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, ServerRound, Tensors


class FedNova(Method):
    """Averages the change per local step, times the mean steps (Wang et al., NeurIPS 2020, arXiv 2007.07481).

    A client divides its change by its number of steps before it sends the model. The server computes the mean
    number of steps from the examples that clients announced, so no client can make up a number of steps.
    """

    name = "fednova"
    preset = PLAIN
    same_for_each_batch = acts_on_gradients = True

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return PerStep(start)

    def step(self, reached: ServerRound) -> ServerRound:
        """w <- w + tau (mean - w), where tau is the clients' mean effective steps, weighted by examples."""
        train, before = reached.train, reached.before
        worth = [effective_steps(optimiser_steps(n, train), train) for n in reached.examples]
        weighted = [n * steps for n, steps in zip(reached.examples, worth, strict=True)]
        tau = math.fsum(weighted) / sum(reached.examples)
        moved = {key: before[key] + tau * (mean - before[key]) for key, mean in reached.mean.items()}
        return replace(reached, mean=moved)


class PerStep(Addition):
    """Divides the change of each parameter that steps at the server change by the number of local steps."""

    def __init__(self, start: LocalRound) -> None:
        params = start.model.named_parameters(remove_duplicate=False)
        self._start = {name: p.detach().clone() for name, p in params if name in start.stepped}
        self._train = start.train
        device = next(start.model.parameters()).device
        self._steps = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # on the device, since steps may be replayed

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
    """Number of plain steps equivalent to `steps` of SGD with momentum rho: sum over s of (1 - rho^s) / (1 - rho).

    Any other optimiser scales its steps itself, so each counts once.
    """
    rho = train.momentum
    if not rho or not train.is_plain_sgd:
        return float(steps)
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


METHOD = FedNova
