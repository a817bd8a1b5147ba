"""MOON: pulls features towards the global model's and away from those of the client's own previous model."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import NonNegative, Positive, Section
from fednc.common.learning.frame import unit
from fednc.common.learning.losses import Features
from fednc.common.learning.round_context import GLOBAL, PREVIOUS
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, Tensors
from fednc.common.methods.companions import PreviousModel


class Moon(Method):
    """A contrast of global and previous local features (Li, He, Song, CVPR 2021, arXiv 2103.16257)."""

    class Options(Section):
        """Keys of moon."""

        contrast: NonNegative = Field(
            0.0,
            description="weight of pulling features towards the global model's and away from those of the "
            "client's own previous model (MOON); two more forward passes",
        )
        contrast_tau: Positive = Field(0.5, description="temperature of the contrast")

    name = "moon"
    preset = PLAIN | {"contrast": 1.0}
    mixes = compares_models = same_for_each_batch = True
    options: Options

    @property
    def is_on(self) -> bool:
        """See Method."""
        return self.options.contrast > 0

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return PreviousModel(start)

    def feature_terms(self, features: Features) -> Tensors:
        """No term before a client's second round, because there is no previous model yet."""
        if PREVIOUS not in features.views:
            return {}
        near, far = features.views[GLOBAL].feat_BD, features.views[PREVIOUS].feat_BD
        contrast = model_contrast(features.feat_BD, near, far, self.options.contrast_tau)
        return {"contrast": self.options.contrast * contrast}


def model_contrast(feat_BD: Tensor, global_BD: Tensor, previous_BD: Tensor, tau: float) -> Tensor:
    """Batch mean of -log softmax of cos(h, h_global) / tau against cos(h, h_previous) / tau."""
    near_B, far_B = ((unit(feat_BD) * unit(z.detach())).sum(dim=1) / tau for z in (global_BD, previous_BD))
    return F.softplus(far_B - near_B).mean()


METHOD = Moon
