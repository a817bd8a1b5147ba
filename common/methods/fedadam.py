"""FedAdam: the second moment is an exponential mean of the squared changes."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fednc.common.methods.adaptive import Adaptive, AdaptiveOptions, Decay


class FedAdam(Adaptive):
    """Adam at the server, on the mean change of the model (Reddi et al., ICLR 2021, arXiv 2003.00295)."""

    class Options(AdaptiveOptions):
        """Keys of fedadam."""

        server_beta2: Decay = Field(0.99, description="decay of the mean squared change")

    name = "fedadam"
    options: Options

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """See Adaptive."""
        return self.options.server_beta2 * v + (1 - self.options.server_beta2) * square


METHOD = FedAdam
