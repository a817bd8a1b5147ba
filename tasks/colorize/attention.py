"""Attention from the tokens of a reference to those of line art: with a constant attention map, and without.

Stop-gradient attention (SGA, ECCV 2022): no gradient flows through the attention map, because it works against the
gradient through the values. Beside it the same block with that gradient, and the block of SCFT. Every block names
its branches, so that `fednc inspect gradients` can compare their gradients. Must not know pictures or losses.

Legend: B batch, T tokens of the target, S tokens of the source, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common.learning.attention_branches import branch

SLOPE = 0.2  # of every LeakyReLU of the published networks
TARGET, SOURCE = "target", "source"
SKIP, QUERY, MAP_QUERY, MAP_KEY, KEY, VALUE = "skip", "query", "map query", "map key", "key", "value"


def double_normalised(target_BTC: Tensor, source_BSC: Tensor) -> Tensor:
    """Attention map [B, T, S]: softmax over keys of the products, then each key's column divided by its sum.

    In logarithms, since a key that nobody attends to has a column that is zero in float32.
    """
    log_BTS = torch.bmm(target_BTC, source_BSC.transpose(1, 2)).log_softmax(dim=2)
    return log_BTS.softmax(dim=1)


class StopGradientAttention(nn.Module):
    """X + BN(A LReLU(W_v Y) + LReLU(W_q X)), with A the map of `double_normalised`, without learnt weights."""

    def __init__(self, channels: int, norm: nn.Module, *, stop_gradient: bool = True) -> None:
        """A block for tokens of `channels`.

        Args:
            norm: takes [B, C, T]; published: batch normalisation.
            stop_gradient: False lets gradients through the map, to compare.
        """
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.norm = norm
        self.stop_gradient = stop_gradient

    def attention_map(self, target_BTC: Tensor, source_BSC: Tensor) -> Tensor:
        """A [B, T, S]; a constant if the block stops gradients."""
        if not self.stop_gradient:
            query_BTC = branch(target_BTC, self, TARGET, MAP_QUERY)
            return double_normalised(query_BTC, branch(source_BSC, self, SOURCE, MAP_KEY))
        with torch.no_grad():
            return double_normalised(target_BTC, source_BSC)

    def forward(self, target_BTC: Tensor, source_BSC: Tensor) -> Tensor:
        """[B, T, C]."""
        map_BTS = self.attention_map(target_BTC, source_BSC)
        value_BSC = F.leaky_relu(self.value(branch(source_BSC, self, SOURCE, VALUE)), SLOPE)
        query_BTC = F.leaky_relu(self.query(branch(target_BTC, self, TARGET, QUERY)), SLOPE)
        mixed_BTC = torch.bmm(map_BTS, value_BSC) + query_BTC
        normed_BTC = self.norm(mixed_BTC.transpose(1, 2)).transpose(1, 2)
        found: Tensor = branch(target_BTC, self, TARGET, SKIP) + normed_BTC
        return found


class ScaledAttention(nn.Module):
    """softmax(Q K^T / sqrt(C)) V + X with learnt queries, keys and values: the block of SCFT (CVPR 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))

    def forward(self, target_BTC: Tensor, source_BSC: Tensor) -> Tensor:
        """[B, T, C]."""
        query_BTC = self.query(branch(target_BTC, self, TARGET, QUERY))
        key_BSC = self.key(branch(source_BSC, self, SOURCE, KEY))
        value_BSC = self.value(branch(source_BSC, self, SOURCE, VALUE))
        score_BTS = torch.bmm(query_BTC, key_BSC.transpose(1, 2)) / math.sqrt(target_BTC.shape[2])
        mixed_BTC = torch.bmm(score_BTS.softmax(dim=2), value_BSC)
        return mixed_BTC + branch(target_BTC, self, TARGET, SKIP)


def attention_block(kind: str, channels: int, norm: nn.Module) -> nn.Module:
    """The block that `task.attention` names."""
    if kind == "scft":
        return ScaledAttention(channels)
    return StopGradientAttention(channels, norm, stop_gradient=kind == "sga")
