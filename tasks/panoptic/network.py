"""The network: features of scenes and of parts, first masks, and stages in which all queries reason together.

Built by the task. After Panoptic-PartFormer (Li et al., ECCV 2022); `masked_stage.py` has the stages of its
successor. Knows neither classes by name nor losses.

Legend: B batch, D width, H height, W width, h and w of the masks, C classes, Q thing, S stuff and P part queries,
N = Q + S + P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.tasks.panoptic.layers import AlignedDecoder, SceneDecoder, SmallBackbone, conv
from fednc.tasks.panoptic.masked_stage import MaskedStage
from fednc.tasks.panoptic.stages import JointStage, PartHead, grouped, masks_of


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """How large the network is, and what its queries stand for.

    Attributes:
        classes: C; all of them are guessed for every pixel, to help the features.
        things: Q, thing queries.
        stuff: label values of the S stuff queries.
        wholes: label value of the whole of each of the P part queries.
    """

    channels: int
    pyramid: tuple[int, ...]
    width: int
    heads: int
    stages: int
    classes: int
    things: int
    stuff: tuple[int, ...]
    wholes: tuple[int, ...]
    masked: bool = False

    @property
    def parts(self) -> int:
        """P."""
        return len(self.wholes)

    @property
    def scenes(self) -> int:
        """Q + S: the queries in front of the part queries."""
        return self.things + len(self.stuff)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What the network says of a batch.

    Attributes:
        mask_BNhw: logits of the masks: of the first ones, then of each stage.
        embed_BND: queries as the classifier gets them, of each stage.
        semantic_BChw: logits of the classes for every pixel, before the stages.
    """

    mask_BNhw: Sequence[Tensor]
    embed_BND: Sequence[Tensor]
    semantic_BChw: Tensor


class PartBranch(nn.Module):
    """All that only parts need: decoder, features, the kernels from which part queries start, a head per stage."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.decoder = AlignedDecoder(shape.pyramid, shape.width)
        self.features = conv(shape.width, shape.width, kernel=1)
        self.kernels = nn.Conv2d(shape.width, shape.parts, 1)
        self.heads = nn.ModuleList(PartHead(shape.width) for _ in range(shape.stages))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(features of parts [B, D, h, w], kernels [P, D], first masks [B, P, h, w])."""
        feat_BDhw = self.features(self.decoder(maps))
        return feat_BDhw, self.kernels.weight.flatten(1), self.kernels(feat_BDhw)


class PartFormer(nn.Module):
    """Pictures to masks and queries. All part-only weights are below `parts`."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.pyramid = SmallBackbone(shape.channels, shape.pyramid)
        self.scene = SceneDecoder(shape.pyramid, shape.width)
        self.thing_features = conv(shape.width, shape.width, kernel=1)
        self.stuff_features = conv(shape.width, shape.width, kernel=1)
        self.thing_kernels = nn.Parameter(torch.randn(shape.things, shape.width))
        self.class_kernels = nn.Conv2d(shape.width, shape.classes, 1)
        kind = MaskedStage if shape.masked else JointStage
        self.stages = nn.ModuleList(kind(shape.width, shape.heads) for _ in range(shape.stages))
        # Last, so that a model without parts starts from the same weights.
        self.parts = PartBranch(shape) if shape.parts else None

    def forward(self, pixel_BCHW: Tensor, *, trains_parts: bool = True) -> Guess:
        """Masks have half the picture's size, rounded up.

        Without `trains_parts`, what is below `parts` gets no gradient.
        """
        maps = self.pyramid(pixel_BCHW)
        scene_BDhw = self.scene(maps)
        thing_BDhw, stuff_BDhw = self.thing_features(scene_BDhw), self.stuff_features(scene_BDhw)
        part_BDhw, part_kernel_PD, part_mask_BPhw = self._parts(maps, trains_parts=trains_parts)
        semantic_BChw = self.class_kernels(stuff_BDhw)
        thing_mask_BQhw = masks_of(self.thing_kernels.expand(pixel_BCHW.shape[0], -1, -1), thing_BDhw)
        stuff = list(self.shape.stuff)
        mask_BNhw = torch.cat([thing_mask_BQhw, semantic_BChw[:, stuff], part_mask_BPhw], dim=1)
        scene_BDhw = thing_BDhw + stuff_BDhw
        query_BND = self._first_queries(mask_BNhw, scene_BDhw + part_BDhw, part_kernel_PD)
        in_wholes_Bhw = self._in_wholes(semantic_BChw)
        masks, embeds = [mask_BNhw], []
        scenes = self.shape.scenes
        for number, stage in enumerate(self.stages):
            query_BND, embed_BND, mask_BNhw = stage(
                query_BND, mask_BNhw, scene_BDhw, part_BDhw, in_wholes_Bhw, self.shape.things, scenes
            )
            if self.parts is not None:
                part_embed_BPD, part_mask_BPhw = self.parts.heads[number](query_BND[:, scenes:], part_BDhw)
                if not trains_parts:
                    part_embed_BPD, part_mask_BPhw = part_embed_BPD.detach(), part_mask_BPhw.detach()
                embed_BND = torch.cat([embed_BND, part_embed_BPD], dim=1)
                mask_BNhw = torch.cat([mask_BNhw, part_mask_BPhw], dim=1)
            masks.append(mask_BNhw)
            embeds.append(embed_BND)
        return Guess(mask_BNhw=masks, embed_BND=embeds, semantic_BChw=semantic_BChw)

    def _parts(self, maps: Sequence[Tensor], *, trains_parts: bool) -> tuple[Tensor, Tensor, Tensor]:
        batch, _, height, width = maps[0].shape
        if self.parts is None:
            empty = maps[0].new_zeros
            return (
                empty(batch, self.shape.width, height, width),
                empty(0, self.shape.width),
                empty(batch, 0, height, width),
            )
        feat_BDhw, kernel_PD, mask_BPhw = self.parts(maps)
        if trains_parts:
            return feat_BDhw, kernel_PD, mask_BPhw
        return feat_BDhw.detach(), kernel_PD.detach(), mask_BPhw.detach()

    def _first_queries(self, mask_BNhw: Tensor, feat_BDhw: Tensor, part_kernel_PD: Tensor) -> Tensor:
        """The kernels; things also take up the features inside their masks."""
        batch, things = mask_BNhw.shape[0], self.shape.things
        thing_BQD = self.thing_kernels + grouped(mask_BNhw[:, :things], feat_BDhw)
        stuff_kernel_SD = self.class_kernels.weight.flatten(1)[list(self.shape.stuff)]
        own = torch.cat([stuff_kernel_SD, part_kernel_PD])
        return torch.cat([thing_BQD, own.expand(batch, -1, -1)], dim=1)

    def _in_wholes(self, semantic_BChw: Tensor) -> Tensor:
        """bool [B, h, w]: pixels whose class has parts, as far as the first masks tell."""
        wholes = torch.tensor(sorted(set(self.shape.wholes)), device=semantic_BChw.device, dtype=torch.int64)
        return torch.isin(semantic_BChw.argmax(dim=1), wholes)
