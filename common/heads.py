"""What turns features into class scores: an ordinary trained classifier, or the frozen frame with a scale.

Part of the model that a task builds. The frame is no parameter and in no state dict: it comes with the guide.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fednc.common.frame import unit
from fednc.common.guide import Guide
from fednc.common.sections import MethodSection


class LinearHead(nn.Linear):
    """An ordinary classifier on the features as they are, not normalised: plain FedAvg's."""

    def __init__(self, dim: int, label_space: int) -> None:
        super().__init__(dim, label_space)


class FrameHead(nn.Module):
    """Cosines to the frozen vertices, times a scale.

    Attributes:
        scale: s; a parameter [] that is averaged with the model if trainable, else a plain number.
    """

    scale: Tensor | float

    def __init__(self, scale: float, trainable: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale)) if trainable else scale

    def forward(self, feat_BD: Tensor, etf_KD: Tensor) -> Tensor:
        """s cos(feat, vertex), [B, K]; zero for a feature without direction."""
        return self.scale * (unit(feat_BD) @ etf_KD.T)


Head = LinearHead | FrameHead


def build_head(method: MethodSection, dim: int, label_space: int) -> Head:
    """The head that `method` asks for."""
    if method.head == "linear":
        return LinearHead(dim, label_space)
    return FrameHead(method.scale, method.train_scale)


def logits(head: Head, feat_BD: Tensor, guide: Guide) -> Tensor:
    """Scores before the softmax in training, [B, K], without class prior."""
    scores_BK: Tensor = head(feat_BD) if isinstance(head, LinearHead) else head(feat_BD, guide.etf_KD)
    return scores_BK
