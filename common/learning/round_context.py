"""The context of a round besides the model: the frozen frame, the class memory, and the position in the run.

Built by `common/tasks/round_guide.py` on both sides; used by tasks and losses.

Legend: K vertices of the frame (size of the label space), D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fednc.common.config.tables import MethodSection

GLOBAL, PREVIOUS = (
    "global",
    "previous",
)  # companions: the model at the round's start, this client's own previous model


@dataclass(frozen=True, kw_only=True)
class Guide:
    """The targets of one round.

    Attributes:
        method: how to train and how to read out.
        etf_KD: unit rows with pairwise cosine -1/(K-1); frozen, never in an optimiser; on the model's device.
        mean_KD: the class memory v_c (not renormalised: |v_c| <= 1 is its confidence); zero for unseen classes.
        seen_K: bool, the classes that have a memory.
        class_weight_K: weight of each class in the loss; None: all weigh the same.
        metric_DD: metric for distances to the memory; None: Euclidean.
        ridge_KD, ridge_K: weights and intercepts of the memory's ridge regression; None: not known.
        count_K: examples of each class that *this client* trains on.
        memory_ramp: factor 0 to 1 on the memory terms of the loss (warm-up).
        companions: frozen models that the loss compares the trained one with; never sent.
        classes: number of classes so far; later vertices have no class yet. None: all classes of the task.
        earlier: number of classes from before the current class session.
        virtual: number of last vertices that are used for the altered classes of `method.virtual_share`.
        temperature: scores of the read-out are divided by it; only after the last round is it not 1.
    """

    method: MethodSection
    etf_KD: Tensor
    mean_KD: Tensor
    seen_K: Tensor
    count_K: Tensor
    memory_ramp: float = 1.0
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    classes: int | None = None
    earlier: int = 0
    virtual: int = 0
    metric_DD: Tensor | None = None
    class_weight_K: Tensor | None = None
    ridge_KD: Tensor | None = None
    ridge_K: Tensor | None = None
    temperature: float = 1.0

    def to(self, device: torch.device) -> Guide:
        """The same guide with its tensors on `device`."""
        return replace(
            self,
            etf_KD=self.etf_KD.to(device),
            mean_KD=self.mean_KD.to(device),
            seen_K=self.seen_K.to(device),
            count_K=self.count_K.to(device),
            metric_DD=None if self.metric_DD is None else self.metric_DD.to(device),
            ridge_KD=None if self.ridge_KD is None else self.ridge_KD.to(device),
            ridge_K=None if self.ridge_K is None else self.ridge_K.to(device),
        )


def with_faded_prior(method: MethodSection, server_round: int, rounds: int) -> MethodSection:
    """The method with the prior's strength in round `server_round` of `rounds` (see `method.prior_fade`)."""
    if not method.prior_fade:
        return method
    done = min(1.0, max(0.0, (server_round - 1) / max(1, rounds - 1)))
    return method.model_copy(update={"prior_tau": method.prior_tau * (1 - method.prior_fade * done)})


def memory_ramp(method: MethodSection, server_round: int) -> float:
    """0 during the warm-up, then linear to 1 over the same number of rounds (`server_round` counts from 1)."""
    if method.warmup_rounds == 0:
        return 1.0
    return min(1.0, max(0.0, (server_round - method.warmup_rounds) / method.warmup_rounds))
