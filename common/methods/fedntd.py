"""FedNTD: keeps the global model's scores for the classes that are not an example's label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import NonNegative, Positive, Section
from fednc.common.learning.losses import Features
from fednc.common.learning.round_context import GLOBAL
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, Tensors
from fednc.common.methods.companions import GlobalModel


class FedNTD(Method):
    """Distils the global scores of all classes but the label (Lee et al., NeurIPS 2022, arXiv 2106.03097)."""

    class Options(Section):
        """Keys of fedntd."""

        distil: NonNegative = Field(
            0.0,
            description="weight of distilling the global model's scores for all classes except the label "
            "(FedNTD); one more forward pass",
        )
        distil_tau: Positive = Field(1.0, description="temperature of the distillation")

    name = "fedntd"
    preset = PLAIN | {"distil": 1.0}
    mixes = compares_models = same_for_each_batch = True
    options: Options

    @property
    def is_on(self) -> bool:
        """See Method."""
        return self.options.distil > 0

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return GlobalModel(start)

    def feature_terms(self, features: Features) -> Tensors:
        """See Method."""
        distilled = not_true_distillation(
            features.scores(), features.views[GLOBAL].logit_BK, features.label_B, self.options.distil_tau
        )
        return {"distillation": self.options.distil * distilled}


def not_true_distillation(logit_BK: Tensor, global_BK: Tensor, label_B: Tensor, tau: float) -> Tensor:
    """Batch mean of tau^2 KL(global || local) of softmaxes at temperature tau over all classes but the label."""
    other_R = torch.arange(logit_BK.shape[1] - 1, device=logit_BK.device)
    other_BR = other_R + (other_R >= label_B[:, None])  # boolean masks would wait for the device
    local_BK, wanted_BK = (
        (z.gather(1, other_BR) / tau).log_softmax(dim=1) for z in (logit_BK, global_BK.detach())
    )
    return tau**2 * F.kl_div(local_BK, wanted_BK, reduction="batchmean", log_target=True)


METHOD = FedNTD
