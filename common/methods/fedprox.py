"""FedProx: pulls the parameters towards the model that the round started from."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from fednc.common.config.tables import NonNegative, Section
from fednc.common.learning.losses import proximal
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, Tensors


class FedProx(Method):
    """A proximal term that holds clients near the global model (Li et al., MLSys 2020, arXiv 1812.06127)."""

    class Options(Section):
        """Keys of fedprox."""

        proximal: NonNegative = Field(0.0, description="mu of the proximal term mu/2 |w - w_global|^2")

    name = "fedprox"
    preset = PLAIN | {"proximal": 0.01}
    mixes = same_for_each_batch = True
    options: Options

    @property
    def is_on(self) -> bool:
        """See Method."""
        return self.options.proximal > 0

    @property
    def pull(self) -> float:
        """See Method."""
        return self.options.proximal

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return Proximal(start.model, self.options.proximal)


class Proximal(Addition):
    """mu/2 |w - w_global|^2."""

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._params, self._mu = list(model.parameters()), mu
        self._start = [p.detach().clone() for p in self._params]

    def penalties(self) -> Tensors:
        """See Addition."""
        return {"proximal": self._mu * proximal(self._params, self._start)}


METHOD = FedProx
