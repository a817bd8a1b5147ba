"""Heads turn features into class scores: an ordinary trained classifier, or the frozen frame with a scale.

Part of the model that a task builds. The frame is not a parameter and not in a state dict; it comes with the
guide.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fednc.common.config.tables import MethodSection
from fednc.common.learning.frame import unit
from fednc.common.learning.round_context import Guide


class LinearHead(nn.Linear):
    """An ordinary classifier on features that are not normalised, as in plain FedAvg."""

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


class CosineHead(nn.Module):
    """Cosines to trained class vectors, times a scale: the counterpart of the frame head without a frozen frame.

    Attributes:
        weight: [K, D], one class vector per row; only its direction matters.
        scale: s; a parameter [] if trainable, else a plain number.
    """

    scale: Tensor | float

    def __init__(self, dim: int, label_space: int, scale: float, trainable: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(label_space, dim))
        self.scale = nn.Parameter(torch.tensor(scale)) if trainable else scale

    def forward(self, feat_BD: Tensor) -> Tensor:
        """s cos(feat, weight), [B, K]."""
        return self.scale * (unit(feat_BD) @ unit(self.weight).T)


Head = LinearHead | FrameHead | CosineHead


def build_head(method: MethodSection, dim: int, label_space: int) -> Head:
    """The head that `method` chooses."""
    if method.head == "linear":
        return LinearHead(dim, label_space)
    if method.head == "cosine":
        return CosineHead(dim, label_space, method.scale, method.train_scale)
    return FrameHead(method.scale, method.train_scale)


def logits(head: Head, feat_BD: Tensor, guide: Guide) -> Tensor:
    """Scores before the softmax in training, [B, K], without class prior; -inf for vertices without a class."""
    scores_BK: Tensor = head(feat_BD, guide.etf_KD) if isinstance(head, FrameHead) else head(feat_BD)
    if guide.classes is None:
        return scores_BK
    vertex_K = torch.arange(scores_BK.shape[1], device=scores_BK.device)
    later_K = (vertex_K >= guide.classes) & (vertex_K < scores_BK.shape[1] - guide.virtual)
    return scores_BK.masked_fill(later_K, -torch.inf)
