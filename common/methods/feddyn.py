"""FedDyn: changes each client's loss so that all have the same minimum as the loss of the whole federation."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import Positive, Section
from fednc.common.learning.losses import proximal
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, ServerRound, Tensors

LINEAR = "linear"  # kind of the client's state


class FedDyn(Method):
    """Dynamic regularisation: a linear and a proximal term per client (Acar et al., ICLR 2021, arXiv 2111.04263).

    Clients are weighted by their examples, as in the mean of models; the paper counts each client once. Any
    optimiser works: the linear terms depend on where local training stopped, not on its steps.
    """

    class Options(Section):
        """Keys of feddyn."""

        dynamic: Positive = Field(
            0.01, description="alpha of the proximal term alpha/2 |w - w_global|^2 and of the corrections"
        )

    name = "feddyn"
    preset = PLAIN
    needs_every_client = same_for_each_batch = True
    options: Options

    @property
    def pull(self) -> float:
        """See Method."""
        return self.options.dynamic

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return Dynamic(start, self.options.dynamic)

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """h, the mean of all clients' linear terms."""
        return {key: torch.zeros_like(p) for key, p in params.items()}

    def step(self, reached: ServerRound) -> ServerRound:
        """h <- h - alpha share (mean - w), w <- mean - h / alpha."""
        alpha, share = self.options.dynamic, reached.share
        h = {
            key: reached.state[key] - alpha * share * (mean - reached.before[key])
            for key, mean in reached.mean.items()
        }
        moved = {key: mean - h[key] / alpha for key, mean in reached.mean.items()}
        return replace(reached, mean=moved, state={**reached.state, **h})


class Dynamic(Addition):
    """The terms alpha/2 |w - w_global|^2 - g.w, where g is the client's own linear term and never sent.

    After training g <- g - alpha (w - w_global), the gradient of the client's own loss at that point.
    """

    def __init__(self, start: LocalRound, alpha: float) -> None:
        own = start.state.read(LINEAR)
        self._params = {name: p for name, p in start.model.named_parameters() if name in start.stepped}
        self._alpha, self._state = alpha, start.state
        self._start = {name: p.detach().clone() for name, p in self._params.items()}
        self._own = {n: own[n].to(p.device) if own else torch.zeros_like(p) for n, p in self._params.items()}

    def penalties(self) -> Tensors:
        """See Addition."""
        linear = torch.stack([(self._own[name] * p).sum() for name, p in self._params.items()]).sum()
        pull = proximal(self._params.values(), self._start.values())
        return {"dynamic": self._alpha * pull - linear}

    def finish(self) -> Tensors:
        """See Addition."""
        moved = {
            name: self._own[name] - self._alpha * (p.detach() - self._start[name])
            for name, p in self._params.items()
        }
        self._state.write(LINEAR, moved)
        return {}


METHOD = FedDyn
