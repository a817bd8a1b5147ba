"""The common part of FedAdagrad, FedAdam and FedYogi: a step at the server with its own rate for each parameter.

Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2. With D = mean - w, the mean change of the model:
m <- beta1 m + (1 - beta1) D; v depends on the method; w <- w + lr m / (sqrt(v) + tau). m starts at zero and v at
tau^2, without bias correction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import SERVER_ONLY, Positive, Section
from fednc.common.methods.api import ServerRound, ServerStep, Tensors

Decay = Annotated[float, Field(ge=0, lt=1), SERVER_ONLY]
FIRST, SECOND = "first/", "second/"  # key prefixes of the moments in the state


class AdaptiveOptions(Section):
    """The keys of all three; the defaults are those of fedadam and fedyogi."""

    server_lr: Annotated[Positive, SERVER_ONLY] = Field(
        0.01, description="learning rate of the server's step; the paper tunes it for each task"
    )
    server_beta1: Decay = Field(0.9, description="decay of the mean change")
    server_tau: Annotated[Positive, SERVER_ONLY] = Field(
        1e-3, description="adaptivity of the step: the larger, the more similar the rates of all parameters"
    )


class Adaptive(ServerStep):
    """The step; a subclass defines how the second moment changes."""

    options: AdaptiveOptions

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment after a round with the squared mean change `square`."""
        raise NotImplementedError

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """First and second moment of each parameter."""
        first = {FIRST + key: torch.zeros_like(p) for key, p in params.items()}
        return first | {SECOND + key: torch.full_like(p, self.options.server_tau**2) for key, p in params.items()}

    def step(self, reached: ServerRound) -> ServerRound:
        """See the top of this file."""
        beta, lr, tau = self.options.server_beta1, self.options.server_lr, self.options.server_tau
        moved, state = {}, dict(reached.state)
        for key, mean in reached.mean.items():
            change = mean - reached.before[key]
            first = state[FIRST + key] = beta * state[FIRST + key] + (1 - beta) * change
            second = state[SECOND + key] = self.second(state[SECOND + key], change.square())
            moved[key] = reached.before[key] + lr * first / (second.sqrt() + tau)
        return replace(reached, mean=moved, state=state)
