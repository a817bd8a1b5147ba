"""A stage with masked cross-attention, after the successor of Panoptic-PartFormer (TPAMI 2024) and Mask2Former.

Used by the network if `task.decoder` is `masked`. What is published of it does not give every detail: the step in
which parts and wholes attend to each other is our reading.

Legend: B batch, D width, N queries, T tokens (the pixels of the masks), h and w height and width of the masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fednc.tasks.panoptic.stages import Branch, SelfAttention, masks_of


class MaskedAttention(nn.Module):
    """Queries attend to the tokens that each is allowed to see; the result is added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, query_BND: Tensor, token_BTD: Tensor, allowed_BNT: Tensor) -> Tensor:
        """[B, N, D]. A query that may see no token sees all of them."""
        told_BND, _ = self.attention(
            query_BND, token_BTD, token_BTD, attn_mask=self.blocked(allowed_BNT), need_weights=False
        )
        found: Tensor = self.norm(query_BND + told_BND)
        return found

    def blocked(self, allowed_BNT: Tensor) -> Tensor:
        """bool [B heads, N, T] for PyTorch's attention."""
        open_BNT = allowed_BNT | ~allowed_BNT.any(dim=2, keepdim=True)
        return (~open_BNT).repeat_interleave(self.heads, dim=0)


class MaskedStage(nn.Module):
    """Own features for scenes and parts: each query sees those inside its mask, then parts and wholes each
    other's.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scene_features, self.part_features = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.to_scene, self.to_parts = MaskedAttention(width, heads), MaskedAttention(width, heads)
        self.part_to_wholes, self.whole_to_parts = MaskedAttention(width, heads), MaskedAttention(width, heads)
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
        """As `JointStage`."""
        scene_BDhw, part_BDhw = self.scene_features(scene_BDhw), self.part_features(part_BDhw)
        scene_BTD, part_BTD = _tokens(scene_BDhw), _tokens(part_BDhw)
        inside_BNT = mask_BNhw.detach().flatten(2) > 0
        scene_q, part_q = query_BND[:, :scenes], query_BND[:, scenes:]
        scene_q = self.to_scene(scene_q, scene_BTD, inside_BNT[:, :scenes])
        if part_q.shape[1]:
            part_q = self.to_parts(part_q, part_BTD, inside_BNT[:, scenes:])
            in_wholes_BNT = in_wholes_Bhw.flatten(1)[:, None].expand(-1, part_q.shape[1], -1)
            part_q = self.part_to_wholes(part_q, scene_BTD, in_wholes_BNT)
            thing_q = self.whole_to_parts(scene_q[:, :things], part_BTD, inside_BNT[:, :things])
            scene_q = torch.cat([thing_q, scene_q[:, things:]], dim=1)
        query_BND = self.attention(torch.cat([scene_q, part_q], dim=1))
        scene_q = query_BND[:, :scenes]
        return query_BND, self.class_branch(scene_q), masks_of(self.mask_branch(scene_q), scene_BDhw)


def _tokens(feat_BDhw: Tensor) -> Tensor:
    return feat_BDhw.flatten(2).transpose(1, 2)
