"""The read-outs: how a trained model classifies. One class each, which defines what it needs and how it scores.

To add a read-out, write a class here and register it; the run file, docs/config.md, clients, server, export and
comparisons use `READOUTS`. Called at evaluation and prediction. Must not know how the class memory was made.

Legend: B batch, D feature width, K label space, W width of the features in the memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fednc.common.learning.frame import unit
from fednc.common.learning.heads import CosineHead, FrameHead, Head, logits
from fednc.common.learning.round_context import Guide
from fednc.common.registry import Registry

_FEW_UNITS = 2.0**-21  # of a float32's last place: more than the error of a division


class ReadOut(ABC):
    """A way to classify.

    Attributes:
        name: its value of `method.readout`.
        summary: what the scores are based on, for docs/config.md.
        needs_head: uses a trained head, which `method.head = "frame"` does not have.
        needs_vertices: uses the frozen vertices, which only `method.head = "frame"` has.
        needs_memory: uses the class memory, so clients send class sums.
        needs_moments: uses the memory's metric, so clients also send their features' second moments.
        needs_ridge: uses the memory's ridge regression, which is made from second moments too.
        reads_any_space: needs nothing but the memory, so that may be made of other features than the head's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_head: ClassVar[bool] = False
    needs_vertices: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    needs_moments: ClassVar[bool] = False
    needs_ridge: ClassVar[bool] = False
    reads_any_space: ClassVar[bool] = False

    @abstractmethod
    def scores(self, feat_BD: Tensor, head: Head, guide: Guide) -> Tensor:
        """Scores [B, K] of the head's inputs, which are not normalised; the argmax is the prediction."""


class MemoryReadOut(ReadOut):
    """Classifies by the class memory alone, so it works in whatever space the memory is in."""

    needs_memory = reads_any_space = True

    @abstractmethod
    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """Scores [B, K] of unit features in the memory's space; classes without a memory are masked afterwards."""

    def memory_scores(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """Scores [B, K] of unit features in the memory's space; -inf for a class without a memory."""
        return self.compare(unit_BD, guide, scale).masked_fill(~guide.seen_K, -torch.inf)

    def scores(self, feat_BD: Tensor, head: Head, guide: Guide) -> Tensor:
        """See ReadOut."""
        return self.memory_scores(unit(feat_BD), guide, scale_of(head, guide))


READOUTS = Registry[ReadOut]("method.readout")


@READOUTS.register
class HeadReadOut(ReadOut):
    """The head as trained; no class prior."""

    name, summary = "head", "the trained head"
    needs_head = True

    def scores(self, feat_BD: Tensor, head: Head, guide: Guide) -> Tensor:
        """See ReadOut."""
        return logits(head, feat_BD, guide)


@READOUTS.register
class VertexReadOut(ReadOut):
    """s h . m_c, with unit feature h, vertex m_c and the head's scale s; no class prior."""

    name, summary = "vertex", "the frozen vertices"
    needs_vertices = True

    def scores(self, feat_BD: Tensor, head: Head, guide: Guide) -> Tensor:
        """See ReadOut."""
        return logits(head, feat_BD, guide)


@READOUTS.register
class ClassMeanReadOut(MemoryReadOut):
    """The nearest class mean: s (h . v_c - |v_c|^2 / 2) = -s/2 |h - v_c|^2 + const, with memory v_c.

    The square is needed: without it, a class with concentrated features (long v_c) would win too often.
    """

    name, summary = "memory", "the class memory"

    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """See MemoryReadOut."""
        return scale * _nearest_mean(unit_BD, guide.mean_KD, guide.mean_KD)


@READOUTS.register
class CosineReadOut(MemoryReadOut):
    """The class mean with the nearest direction: s cos(h, v_c), the usual read-out of few-shot learning."""

    name, summary = "cosine", "the class memory, compared by direction alone"

    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """See MemoryReadOut."""
        return scale * (unit(unit_BD) @ unit(guide.mean_KD).T)


@READOUTS.register
class BlendReadOut(ReadOut):
    """Vertex and memory: s ((1 - w) h . m_c + w (h . v_c - |v_c|^2 / 2)), w = 1 / (2 - k^2).

    k is the mean length of the memories. If features have variance 1 - k^2 around their class means, the nearest
    mean is 1 / (1 - k^2) times as reliable, so w grows from 1/2 to 1 as classes collapse. For a class that has not
    been seen, v_c = k m_c: its vertex replaces the missing memory.
    """

    name, summary = "blend", "vertices and class memory together"
    needs_vertices = True
    needs_memory = True

    def scores(self, feat_BD: Tensor, head: Head, guide: Guide) -> Tensor:
        """See ReadOut."""
        length = guide.mean_KD.norm(dim=1)[guide.seen_K].mean().nan_to_num(0.0)
        memory_KD = torch.where(guide.seen_K.unsqueeze(1), guide.mean_KD, length * guide.etf_KD)
        weight, unit_BD = 1 / (2 - length.square()), unit(feat_BD)
        by_vertex_BK, by_memory_BK = unit_BD @ guide.etf_KD.T, _nearest_mean(unit_BD, memory_KD, memory_KD)
        return scale_of(head, guide) * torch.lerp(by_vertex_BK, by_memory_BK, weight)


@READOUTS.register
class DiscriminantReadOut(ClassMeanReadOut):
    """Fisher's linear discriminant: the nearest class mean in the memory's metric A.

    h . A v_c - v_c . A v_c / 2, where A is the inverse covariance of features around their class means, and the
    mean of all v_c is first subtracted from h and v_c. This is the log-likelihood of a class minus that of the
    mean, so it has no scale, and its log-loss is not comparable with the training loss. Without a metric (until a
    class has had two examples) it is the ordinary nearest class mean.
    """

    name = "discriminant"
    summary = (
        "the class memory, in the metric of the features within classes; clients also send second moments for it"
    )
    needs_moments = True

    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """See MemoryReadOut."""
        if guide.metric_DD is None:
            return super().compare(unit_BD, guide, scale)
        centre_D = guide.mean_KD[guide.seen_K].mean(dim=0)
        centred_KD = guide.mean_KD - centre_D
        return _nearest_mean(unit_BD - centre_D, centred_KD, centred_KD @ guide.metric_DD)


@READOUTS.register
class RidgeReadOut(MemoryReadOut):
    """Ridge regression from features to one-hot labels: s (w_c . h + b_c), with the head's scale s.

    The regression is in the memory (`ridge.py`): it follows from class sums and second moments in closed form. Its
    intercept holds the share of each class in the training data, so frequent classes win in doubt. Until there are
    sums it is the ordinary nearest class mean.
    """

    name = "ridge"
    summary = (
        "ridge regression from features to classes, in closed form from the same sums as `discriminant`; see "
        "`method.ridge`"
    )
    needs_moments = needs_ridge = True

    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """See MemoryReadOut."""
        if guide.ridge_KD is None or guide.ridge_K is None:
            return scale * _nearest_mean(unit_BD, guide.mean_KD, guide.mean_KD)
        return scale * (unit_BD @ guide.ridge_KD.T + guide.ridge_K)


def readout_of(guide: Guide) -> ReadOut:
    """The run's read-out."""
    return READOUTS.get(guide.method.readout)


def readout_logits(
    feat_BD: Tensor, head: Head, guide: Guide, classes: int, in_memory_BW: Tensor | None = None
) -> Tensor:
    """Scores [B, K] of the run's read-out; -inf for reserved vertices beyond the current `classes`.

    While no class has a memory, the head as trained replaces a read-out that needs one. The head's scale s does
    not change predictions, but makes softmax and log-loss comparable with training.

    Args:
        feat_BD: the head's inputs, not normalised.
        in_memory_BW: unit features in the memory's space, if that is another one.
    """
    readout = readout_of(guide)
    if in_memory_BW is not None and isinstance(readout, MemoryReadOut):
        score_BK = readout.memory_scores(in_memory_BW, guide, scale_of(head, guide))
    else:
        score_BK = readout.scores(feat_BD, head, guide)
    if readout.needs_memory:
        score_BK = torch.where(guide.seen_K[:classes].any(), score_BK, logits(head, feat_BD, guide))
    return tempered(_existing(score_BK, classes), guide.temperature)


def as_trained(feat_BD: Tensor, head: Head, guide: Guide, classes: int) -> Tensor:
    """Scores [B, K] of the head as trained; -inf beyond the current `classes`."""
    return tempered(_existing(logits(head, feat_BD, guide), classes), guide.temperature)


def tempered(score_BK: Tensor, temperature: float) -> Tensor:
    """The scores divided by `temperature`; the argmax stays the same.

    Division may round two close scores to the same value. So the best score is raised by a few units in its last
    place, which its softmax does not show.
    """
    if temperature == 1:
        return score_BK
    divided_BK = score_BK / temperature
    is_best_BK = score_BK == score_BK.max(dim=1, keepdim=True).values
    return torch.where(is_best_BK, divided_BK + divided_BK.abs() * _FEW_UNITS, divided_BK)


def scale_of(head: Head, guide: Guide) -> Tensor | float:
    """The factor s on cosines: the head's own, or for a linear head that of the run file."""
    return head.scale if isinstance(head, FrameHead | CosineHead) else guide.method.scale


def _existing(score_BK: Tensor, classes: int) -> Tensor:
    reserved_K = torch.arange(score_BK.shape[1], device=score_BK.device) >= classes
    return score_BK.masked_fill(reserved_K, -torch.inf)


def _nearest_mean(feat_BD: Tensor, mean_KD: Tensor, axis_KD: Tensor) -> Tensor:
    """[B, K]: h . a - v . a / 2 with a = A v, which is (|h|^2 - |h - v|^2) / 2 in the metric A."""
    return feat_BD @ axis_KD.T - (mean_KD * axis_KD).sum(dim=1) / 2
