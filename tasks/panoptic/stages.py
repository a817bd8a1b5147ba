"""A stage of joint reasoning: queries take up what is inside their masks, attend to each other, and predict again.

Used by the network. Every stage has weights of its own.

Legend: B batch, D width, N queries, h and w height and width of the masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grouped(mask_BNhw: Tensor, feat_BDhw: Tensor) -> Tensor:
    """[B, N, D]: for each query the sum of the features where its mask is above one half."""
    inside_BNhw = (mask_BNhw > 0).to(feat_BDhw.dtype)
    return torch.einsum("bnhw,bdhw->bnd", inside_BNhw, feat_BDhw)


def masks_of(kernel_BND: Tensor, feat_BDhw: Tensor) -> Tensor:
    """[B, N, h, w]: logits of the masks, products of kernels and features."""
    return torch.einsum("bnd,bdhw->bnhw", kernel_BND, feat_BDhw)


class Branch(nn.Sequential):
    """Linear, LayerNorm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU())


class SelfAttention(nn.Module):
    """All queries attend to all, then each passes two layers; both are added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.after_attention = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.after_layers = nn.LayerNorm(width)

    def forward(self, query_BND: Tensor) -> Tensor:
        """[B, N, D]."""
        told_BND, _ = self.attention(query_BND, query_BND, query_BND, need_weights=False)
        query_BND = self.after_attention(query_BND + told_BND)
        found: Tensor = self.after_layers(query_BND + self.layers(query_BND))
        return found


class DynamicUpdate(nn.Module):
    """Mixes a query with the features that it grouped; both decide by gates how much of each is kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_features, self.of_query = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.feature_gate = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Sigmoid())
        self.query_gate = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Sigmoid())
        self.feature_norm, self.query_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())

    def forward(self, grouped_BND: Tensor, query_BND: Tensor) -> Tensor:
        """[B, N, D]."""
        feature_in, feature_out = self.of_features(grouped_BND).chunk(2, dim=-1)
        query_in, query_out = self.of_query(query_BND).chunk(2, dim=-1)
        both_BND = feature_in * query_in
        kept_BND = self.feature_gate(both_BND) * self.feature_norm(feature_out)
        found: Tensor = self.out(kept_BND + self.query_gate(both_BND) * self.query_norm(query_out))
        return found


class JointStage(nn.Module):
    """Joint features of things, stuff and parts; one update and one attention for all queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(width, width, 1)
        self.update = DynamicUpdate(width)
        self.attention = SelfAttention(width, heads)
        self.class_branch = Branch(width)
        self.mask_branch = nn.Sequential(Branch(width), nn.Linear(width, width))

    def forward(
        self,
        query_BND: Tensor,
        mask_BNhw: Tensor,
        scene_BDhw: Tensor,
        part_BDhw: Tensor,
        in_wholes_Bhw: Tensor,
        things: int,
        scenes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(all queries, scene queries as the classifier gets them, logits of their masks).

        The first `scenes` queries are things and stuff, of these the first `things` things. `PartHead` says what
        the part queries found.
        """
        del in_wholes_Bhw, things  # for the masked stage
        feat_BDhw = self.features(scene_BDhw + part_BDhw)
        query_BND = self.attention(self.update(grouped(mask_BNhw, feat_BDhw), query_BND))
        scene_q = query_BND[:, :scenes]
        return query_BND, self.class_branch(scene_q), masks_of(self.mask_branch(scene_q), feat_BDhw)


class PartHead(nn.Module):
    """What part queries found after a stage. Only clients with part labels train it, so it is kept apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(width, width, 1)
        self.class_branch = Branch(width)
        self.mask_branch = nn.Sequential(Branch(width), nn.Linear(width, width))

    def forward(self, part_BPD: Tensor, feat_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """(part queries as the classifier gets them, logits of their masks [B, P, h, w])."""
        masks_BPhw = masks_of(self.mask_branch(part_BPD), self.features(feat_BDhw))
        return self.class_branch(part_BPD), masks_BPhw
