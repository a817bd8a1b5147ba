"""Tasks look at each other: attention over the tokens of all tasks of one picture, then a query of each task.

After DeMT (AAAI 2023, arXiv 2301.03461). Two modes. `token`: every token attends to the tokens of all tasks at all
places; its cost grows with the square of places times tasks. `location`: tokens attend to those of all tasks at
their own place. Pictures never mix. Must not know data or losses.

Legend: B batch, T tasks, N places, C channels, S sequences, L their length, M length of what is attended to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKEN, LOCATION, OFF = "token", "location", "off"


class Attention(nn.Module):
    """Multi-head attention over sequences that do not see each other."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def forward(self, query_SLC: Tensor, context_SMC: Tensor, allowed_LM: Tensor | None) -> Tensor:
        """[S, L, C]. `allowed_LM`: which tokens may see which; None: all."""
        parts = self._split(self.query(query_SLC)), self._split(self.key(context_SMC))
        value = self._split(self.value(context_SMC))
        found = F.scaled_dot_product_attention(*parts, value, attn_mask=allowed_LM)
        joined: Tensor = found.transpose(1, 2).flatten(2)
        return joined

    def weights(self, query_SLC: Tensor, context_SMC: Tensor, allowed_LM: Tensor | None) -> Tensor:
        """[S, L, M]: how much each token attends to each other one, the mean over the heads."""
        query, key = self._split(self.query(query_SLC)), self._split(self.key(context_SMC))
        score = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if allowed_LM is not None:
            score = score.masked_fill(~allowed_LM, float("-inf"))
        found: Tensor = score.softmax(dim=-1).mean(dim=1)
        return found

    def _split(self, value_SLC: Tensor) -> Tensor:
        sequences, length, channels = value_SLC.shape
        return value_SLC.reshape(sequences, length, self.heads, channels // self.heads).transpose(1, 2)


class Sequences:
    """How the tokens [B, T, N, C] of a batch become sequences, and which of them may see which."""

    def __init__(self, mode: str, private: Sequence[bool], device: torch.device) -> None:
        """`private`: for each task whether only it may see its tokens; every task sees all others."""
        self.mode = mode
        rows = [
            [row == column or not hidden for column, hidden in enumerate(private)] for row in range(len(private))
        ]
        # Decided in Python: a model that branches on a tensor cannot be exported as a graph.
        self.allowed_TT = None if not any(private) else torch.tensor(rows, device=device)

    def of(self, token_BTNC: Tensor) -> Tensor:
        """[B, T N, C], or [B N, T, C] where each place is a sequence of its own."""
        if self.mode == TOKEN:
            return token_BTNC.flatten(1, 2)
        return token_BTNC.transpose(1, 2).flatten(0, 1)

    def back(self, found_SLC: Tensor, shape: torch.Size) -> Tensor:
        """[B, T, N, C], the inverse of `of`; `shape` is that of the tokens."""
        batch, tasks, places, channels = shape
        if self.mode == TOKEN:
            return found_SLC.reshape(batch, tasks, places, channels)
        return found_SLC.reshape(batch, places, tasks, channels).transpose(1, 2)

    def allowed(self, places: int, row: int | None = None) -> Tensor | None:
        """Mask of the sequences of all tasks, or of those of task `row`; None where everything may be seen."""
        if self.allowed_TT is None:
            return None
        allowed = self.allowed_TT if row is None else self.allowed_TT[row : row + 1]
        each = places if self.mode == TOKEN else 1
        return allowed.repeat_interleave(each, dim=0).repeat_interleave(each, dim=1)

    def by_task(self, weight_SLM: Tensor, tasks: int) -> Tensor:
        """[rows, T]: the share of attention that tokens of each task give to those of each; rows add up to 1."""
        each = weight_SLM.shape[2] // tasks
        rows = weight_SLM.shape[1] // each
        share = weight_SLM.reshape(len(weight_SLM), rows, each, tasks, each).sum(dim=4)
        return share.mean(dim=(0, 2))


class Asking(nn.Module):
    """Attention of some tokens to others, a linear layer, a normalisation."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attend = Attention(channels, heads)
        self.join = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def answer(self, own_SLC: Tensor, other_SMC: Tensor, allowed: Tensor | None) -> Tensor:
        """[S, L, C]."""
        found_SLC: Tensor = self.norm(self.join(self.attend(own_SLC, other_SMC, allowed)))
        return found_SLC


class Interaction(Asking):
    """What all tasks make of each other."""

    def forward(self, token_BTNC: Tensor, sequences: Sequences) -> Tensor:
        """[B, T, N, C]."""
        each = sequences.of(token_BTNC)
        found = self.answer(each, each, sequences.allowed(token_BTNC.shape[2]))
        return sequences.back(found, token_BTNC.shape)


class Query(Asking):
    """One task asks what all tasks have made of each other, and adds the answer to its own tokens."""

    def forward(self, token_BTNC: Tensor, joint_BTNC: Tensor, row: int, sequences: Sequences) -> Tensor:
        """[B, N, C] of task number `row`."""
        own_B1NC = token_BTNC[:, row : row + 1]
        allowed = sequences.allowed(token_BTNC.shape[2], row)
        found = self.answer(sequences.of(own_B1NC), sequences.of(joint_BTNC), allowed)
        return (own_B1NC + sequences.back(found, own_B1NC.shape)).squeeze(1)
