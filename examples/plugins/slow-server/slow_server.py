"""A method with a step at the server: moves part of the way to the clients' mean, with momentum."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import SERVER_ONLY, Section, Share
from fednc.common.methods.api import PLAIN, Method, ServerRound, Tensors


class SlowServer(Method):
    """Averaging in which the server moves part of the way to the mean and adds a share of its previous step."""

    class Options(Section):
        server_part: Annotated[Share, SERVER_ONLY] = Field(0.7, description="part of the way to the clients' mean")
        server_keep: Annotated[Share, SERVER_ONLY] = Field(0.2, description="share of the previous step to add")

    name = "slow-server"
    version = 1
    preset: ClassVar = PLAIN
    options: Options

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        return {name: torch.zeros_like(param) for name, param in params.items()}

    def step(self, reached: ServerRound) -> ServerRound:
        part, keep = self.options.server_part, self.options.server_keep
        before, last = reached.before, reached.state
        moves = {name: part * (mean - before[name]) + keep * last[name] for name, mean in reached.mean.items()}
        moved = {name: before[name] + move for name, move in moves.items()}
        return replace(reached, mean=moved, state={**last, **moves})
