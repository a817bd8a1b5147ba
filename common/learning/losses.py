"""Losses: alignment with the target, the terms of the class memory, the proximal term, and their sum.

Called by tasks at each training step (`objective`) and by methods (`proximal`). Nothing here waits for the device.
Must not know models: takes features and returns scalars.

Legend: B batch, D feature width, K label space, R the K-1 classes other than the label. Every loss is a mean over
its samples and safe for features that are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.errors import ConfigError
from fednc.common.learning.frame import unit
from fednc.common.learning.heads import Head, logits
from fednc.common.learning.round_context import GLOBAL, Guide


def dot_regression(feat_BD: Tensor, label_B: Tensor, etf_KD: Tensor, weight_K: Tensor | None = None) -> Tensor:
    """mean 1/2 (m_y . h - 1)^2, where h = unit(feat) and m_y is the vertex of the label.

    Its gradient with respect to h is -(1 - cos) m_y: only a pull, which fades as h gets there (Yang et al.,
    NeurIPS 2022).
    """
    gap_B = _dot_gap(feat_BD, label_B, etf_KD)
    return gap_B.mean() if weight_K is None else (weight_K[label_B] * gap_B).mean()


def cross_entropy(
    logit_BK: Tensor, label_B: Tensor, prior_K: Tensor | None = None, weight_K: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of softmax(logit + prior); without a prior, ordinary cross-entropy.

    A weighted mean divides by the number of examples, not by the sum of their weights: otherwise a client that
    only has one class would cancel its weight.
    """
    logit_BK = logit_BK if prior_K is None else logit_BK + prior_K
    if weight_K is None:
        return F.cross_entropy(logit_BK, label_B)
    return F.cross_entropy(logit_BK, label_B, weight=weight_K, reduction="sum") / max(1, len(label_B))


def class_prior(count_K: Tensor, tau: float) -> Tensor:
    """tau log(max(n_c, 1) / n), [K] (balanced softmax).

    Added to the logits in training but not in the read-out. It accounts for the client's own class frequencies, so
    that the features do not have to. Clamping at one example keeps the push on absent classes small but finite.
    """
    count_K = count_K.to(torch.get_default_dtype())
    return tau * torch.log(count_K.clamp(min=1) / count_K.sum().clamp(min=1))


def calibration(count_K: Tensor, tau: float) -> Tensor:
    """-tau n_c^(-1/4), [K], and -inf for a class without examples.

    Added to the logits in training. The rarer a class is on this client, the larger the margin it requires (FedLC:
    Zhang et al., ICML 2022, arXiv 2209.00189). The paper also leaves the label out of the softmax's denominator,
    which gives a loss without lower bound; here it is kept.
    """
    margin_K = -tau * count_K.clamp(min=1).to(torch.get_default_dtype()).pow(-0.25)
    return margin_K.masked_fill(count_K == 0, -torch.inf)  # without a margin too


def memory_anchor(feat_BD: Tensor, label_B: Tensor, mean_KD: Tensor, seen_K: Tensor) -> Tensor:
    """Mean 1/2 |h - v_y|^2 with h = unit(feat), over samples whose class has a memory; zero if none has.

    v is not renormalised: the pull along the sphere is proportional to its length, so a diffuse class pulls
    weakly.
    """
    gap_BD = unit(feat_BD) - mean_KD.detach()[label_B]
    return _masked_mean(0.5 * gap_BD.square().sum(dim=1), seen_K[label_B])


def memory_centre(feat_BD: Tensor, label_B: Tensor, mean_KD: Tensor, seen_K: Tensor) -> Tensor:
    """Mean of 1/2 |mean of h - v_c|^2 over the classes c in the batch that have a memory; zero if none has.

    Unlike the anchor it does not affect the spread within a class, and each class counts once.
    """
    label_K = torch.arange(len(mean_KD), device=feat_BD.device)
    member_KB = (label_K[:, None] == label_B).to(feat_BD.dtype)
    count_K = member_KB.sum(dim=1)
    centre_KD = member_KB @ unit(feat_BD) / count_K.clamp(min=1)[:, None]
    gap_K = 0.5 * (centre_KD - mean_KD.detach()).square().sum(dim=1)
    return _masked_mean(gap_K, seen_K & (count_K > 0))


def blended_targets(etf_KD: Tensor, mean_KD: Tensor, seen_K: Tensor, share: float) -> Tensor:
    """unit((1 - share) m_c + share v_c) [K, D]; the vertex m_c if class c has no memory."""
    blend_KD = unit((1 - share) * etf_KD + share * mean_KD.detach())
    return torch.where(seen_K[:, None], blend_KD, etf_KD)


def memory_rehearsal(feat_KD: Tensor, seen_K: Tensor, head: Head, guide: Guide) -> Tensor:
    """The alignment loss on one memory feature per class, over classes that have one; zero if none has.

    Each class counts once, so no prior is needed, and classes that this client lacks are not forgotten.

    Args:
        feat_KD: the memory as the head's input; has a gradient if the caller projected it.
        seen_K: classes that have a memory.
    """
    label_K = torch.arange(feat_KD.shape[0], device=feat_KD.device)
    if guide.method.loss == "dot":
        loss_K = _dot_gap(feat_KD, label_K, guide.etf_KD)
    else:
        loss_K = F.cross_entropy(logits(head, feat_KD, guide), label_K, reduction="none")
    return _masked_mean(loss_K, seen_K)


def proximal(params: Iterable[Tensor], global_params: Iterable[Tensor]) -> Tensor:
    """1/2 |w - w_global|^2 over all parameters, in the same order in both; times mu it is FedProx's term."""
    pairs = zip(params, global_params, strict=True)
    return 0.5 * torch.stack([(w - w_global.detach()).square().sum() for w, w_global in pairs]).sum()


@dataclass(frozen=True)
class View:
    """Another model's outputs for the same batch, without gradient.

    Attributes:
        feat_BD: its features.
        logit_BK: its scores before the softmax.
    """

    feat_BD: Tensor
    logit_BK: Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """One batch, as passed to a method's `feature_terms`.

    Attributes:
        feat_BD: the model's features, before normalisation.
        label_B: class indices.
        head: the model's classifier.
        guide: the target of the round.
        views: outputs of the companions for the batch, by their names.
    """

    feat_BD: Tensor
    label_B: Tensor
    head: Head
    guide: Guide
    views: Mapping[str, View]

    def scores(self) -> Tensor:
        """The model's scores before the softmax, [B, K]."""
        return logits(self.head, self.feat_BD, self.guide)


def objective(
    feat_BD: Tensor,
    label: Tensor,
    head: Head,
    guide: Guide,
    rehearsal_KD: Tensor | None = None,
    views: Mapping[str, View] = MappingProxyType({}),
    allowed_BK: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a client minimises under `guide.method`, except for penalties on parameters.

    The memory terms grow with `guide.memory_ramp` and are absent while it is 0.

    Args:
        feat_BD: the model's features, before normalisation.
        label: B labels in any shape.
        rehearsal_KD: memory features that the model projected at this step. Rehearsal must train parameters to be
            useful, and a memory from after the projection can only train the head. So a task that rehearses takes
            its memory before the projection (as unit vectors, so nothing else changes) and passes the projected
            features. Without them only the head rehearses.
        views: outputs of each of `guide.companions` for the batch, by the same name.
        allowed_BK: bool, the classes that each sample may have, its label among them; None: all. The others are
            left out of the softmax of cross-entropies.

    Returns:
        The scalar to minimise and its weighted parts by name, detached.

    Raises:
        ConfigError: `method.rehearsal` is on but would train nothing, because there is no projected memory and the
            head is frozen; or the method compares models and the task provides no views.
    """
    if torch.is_autocast_enabled(feat_BD.device.type):  # layers may use low precision, losses may not
        with torch.autocast(feat_BD.device.type, enabled=False):
            wide = {name: View(view.feat_BD.float(), view.logit_BK.float()) for name, view in views.items()}
            return objective(feat_BD.float(), label, head, guide, _float(rehearsal_KD), wide, allowed_BK)
    method, label_B = guide.method, label.reshape(-1)
    parts = {"alignment": _alignment(feat_BD, label_B, head, _with_targets(guide), allowed_BK)}
    for name, weight, pull in (("anchor", method.anchor, memory_anchor), ("centre", method.centre, memory_centre)):
        if weight > 0 and guide.memory_ramp > 0:
            parts[name] = weight * guide.memory_ramp * pull(feat_BD, label_B, guide.mean_KD, guide.seen_K)
    if method.rehearsal > 0:
        memory_KD = _rehearsal_features(rehearsal_KD, head, guide)
        if guide.memory_ramp > 0:
            rehearsal = memory_rehearsal(memory_KD, guide.seen_K, head, guide)
            parts["rehearsal"] = method.rehearsal * guide.memory_ramp * rehearsal
    parts |= _of_methods(feat_BD, label_B, head, guide, views)
    total = torch.stack(list(parts.values())).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


def _with_targets(guide: Guide) -> Guide:
    """The guide with the training targets instead of the vertices."""
    share = guide.method.target_blend * guide.memory_ramp
    if share == 0:
        return guide
    return replace(guide, etf_KD=blended_targets(guide.etf_KD, guide.mean_KD, guide.seen_K, share))


def _alignment(feat_BD: Tensor, label_B: Tensor, head: Head, guide: Guide, allowed_BK: Tensor | None) -> Tensor:
    method = guide.method
    if method.loss == "dot":
        return method.dot_weight * dot_regression(feat_BD, label_B, guide.etf_KD, guide.class_weight_K)
    prior_of = {"balanced-ce": class_prior, "calibrated-ce": calibration}.get(method.loss)
    prior_K = prior_of(guide.count_K, method.prior_tau) if prior_of else None
    logit_BK = logits(head, feat_BD, guide)
    if allowed_BK is not None:
        logit_BK = logit_BK.masked_fill(~allowed_BK, -torch.inf)
    return cross_entropy(logit_BK, label_B, prior_K, guide.class_weight_K)


def _of_methods(
    feat_BD: Tensor, label_B: Tensor, head: Head, guide: Guide, views: Mapping[str, View]
) -> dict[str, Tensor]:
    """The terms that the active methods add."""
    parts = guide.method.parts
    comparing = [part.name for part in parts if part.compares_models]
    if comparing and GLOBAL not in views:
        raise ConfigError(
            f"method {' and '.join(comparing)} compares models, which this task does not support: choose another "
            "method.name, and leave the keys of this one (docs/config.md) at 0"
        )
    features = Features(feat_BD=feat_BD, label_B=label_B, head=head, guide=guide, views=views)
    return {name: term for part in parts for name, term in part.feature_terms(features).items()}


def _rehearsal_features(rehearsal_KD: Tensor | None, head: Head, guide: Guide) -> Tensor:
    if rehearsal_KD is not None:
        return rehearsal_KD
    if guide.method.loss == "dot" or not any(p.requires_grad for p in head.parameters()):
        raise ConfigError(
            f"method.rehearsal = {guide.method.rehearsal:g} would train nothing: this task has no memory from "
            "before its projection, and the head is frozen. Set method.rehearsal = 0 or method.train_scale = true."
        )
    return guide.mean_KD


def _dot_gap(feat_BD: Tensor, label_B: Tensor, etf_KD: Tensor) -> Tensor:
    return 0.5 * ((unit(feat_BD) * etf_KD[label_B]).sum(dim=1) - 1).square()


def _masked_mean(value_B: Tensor, mask_B: Tensor) -> Tensor:
    return torch.where(mask_B, value_B, 0.0).sum() / mask_B.sum().clamp(min=1)
