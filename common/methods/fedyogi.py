"""FedYogi: the second moment changes by a share of the squared change, independent of its own size."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fednc.common.methods.adaptive import Adaptive, AdaptiveOptions, Decay


class FedYogi(Adaptive):
    """Yogi at the server, on the mean change of the model (Reddi et al., ICLR 2021, arXiv 2003.00295)."""

    class Options(AdaptiveOptions):
        """Keys of fedyogi."""

        server_beta2: Decay = Field(
            0.99, description="1 minus the share of a squared change by which the second moment changes"
        )

    name = "fedyogi"
    options: Options

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """See Adaptive."""
        return v - (1 - self.options.server_beta2) * square * (v - square).sign()


METHOD = FedYogi
