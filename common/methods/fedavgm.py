"""FedAvgM: momentum at the server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import SERVER_ONLY, Positive, Section
from fednc.common.methods.api import ServerRound, ServerStep, Tensors


class FedAvgM(ServerStep):
    """Momentum at the server, on the mean change of the model (Hsu, Qi, Brown, 2019, arXiv 1909.06335)."""

    class Options(Section):
        """Keys of fedavgm."""

        server_lr: Annotated[Positive, SERVER_ONLY] = Field(1.0, description="learning rate of the server's step")
        server_momentum: Annotated[float, Field(ge=0, lt=1), SERVER_ONLY] = Field(
            0.9, description="share of the previous step that is added to the next"
        )

    name = "fedavgm"
    options: Options

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """The velocity of each parameter."""
        return {key: torch.zeros_like(p) for key, p in params.items()}

    def step(self, reached: ServerRound) -> ServerRound:
        """v <- beta v + (mean - w), w <- w + lr v."""
        beta, lr = self.options.server_momentum, self.options.server_lr
        before, old = reached.before, reached.state
        velocity = {key: beta * old[key] + (mean - before[key]) for key, mean in reached.mean.items()}
        moved = {key: before[key] + lr * v for key, v in velocity.items()}
        return replace(reached, mean=moved, state={**old, **velocity})


METHOD = FedAvgM
