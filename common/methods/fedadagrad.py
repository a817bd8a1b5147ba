"""FedAdagrad: the second moment is the sum of all squared changes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import SERVER_ONLY, Positive
from fednc.common.methods.adaptive import Adaptive, AdaptiveOptions, Decay


class FedAdagrad(Adaptive):
    """Adagrad at the server, on the mean change of the model (Reddi et al., ICLR 2021, arXiv 2003.00295)."""

    class Options(AdaptiveOptions):
        """Keys of fedadagrad."""

        server_lr: Annotated[Positive, SERVER_ONLY] = Field(
            0.1,
            description="learning rate of the server's step; the paper tunes it for each task",
        )
        server_beta1: Decay = Field(0.0, description="decay of the mean change; 0: no momentum, as in the paper")

    name = "fedadagrad"
    options: Options

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """See Adaptive."""
        return v + square


METHOD = FedAdagrad
