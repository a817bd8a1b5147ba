"""The centre collapse regulariser (CeCo, CVPR 2023, arXiv 2301.01100), and its federated extension.

The mean feature of each class in a batch, its centre, goes through two projections and is classified against a
fixed frame. Each class in the batch counts once, so rare classes get about as much gradient as frequent ones,
exactly as much without `norm`, which divides by the deviation of all pixels. The branch is used in training only.
Pure functions and a module; must not know tasks or clients.

Legend: P pixels, D feature width, K classes, R reduced width, W width of the frame, C classes in the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common import seeds
from fednc.common.learning.frame import draw_frame, unit

COUNT = "image_count_K"  # buffer of the branch: pictures that have each class, over all clients
_EPS = 1e-5


def centres(feat_PD: Tensor, label_P: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(mean feature of each class [K, D], zero for a class without pixels; int64 number of pixels [K])."""
    count_K = torch.bincount(label_P, minlength=classes)
    sum_KD = feat_PD.new_zeros(classes, feat_PD.shape[1]).index_add(0, label_P, feat_PD)
    return sum_KD / count_K.clamp(min=1)[:, None], count_K


def mixed_with_memory(centre_KD: Tensor, length: Tensor, mean_KD: Tensor, share_K: Tensor) -> Tensor:
    """Centres with `share_K` of the global class memory; without gradient through the memory.

    Args:
        length: mean length of the batch's features; the memory is a mean of unit features.
        mean_KD: the class memory.
        share_K: 0 to 1; 0 for a class without memory.
    """
    memory_KD = (length * mean_KD).detach()
    return torch.lerp(centre_KD, memory_KD, share_K[:, None])


def centre_loss(
    centre_CW: Tensor, label_C: Tensor, frame_KW: Tensor, log_prior_K: Tensor | None, scale: float
) -> Tensor:
    """Mean over the classes present of the cross-entropy of scale cos(centre, vertex) + log prior."""
    logit_CK = scale * (unit(centre_CW) @ frame_KW.T)
    return F.cross_entropy(logit_CK if log_prior_K is None else logit_CK + log_prior_K, label_C)


def log_prior(count_K: Tensor) -> Tensor:
    """log of the share of each class [K]; a class without pictures counts as one picture."""
    count_K = count_K.clamp(min=1).double()
    return (count_K / count_K.sum()).log().float()


class CentreBranch(nn.Module):
    """Features of pixels in, the loss of their centres out. Building it draws nothing from the global generator.

    Frozen, the projections follow from the seed and are not in the state dict: they cost no bytes. Trainable, they
    are parameters. The frame is never in the state dict.
    """

    frame_KW: Tensor
    image_count_K: Tensor
    reduce_RD: Tensor
    gain_WR: Tensor
    bias_W: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        seed: int,
        *,
        reduced: int = 128,
        width: int = 512,
        scale: float = 5.0,
        dropout: float = 0.1,
        trainable: bool = False,
        relu: bool = True,
        norm: bool = True,
    ) -> None:
        """`seed`: that of the run."""
        super().__init__()
        self.scale, self.dropout, self.relu, self.norm = scale, dropout, relu, norm
        frame = draw_frame(classes, width, seeds.derive(seed, "ceco-frame"))
        self.register_buffer("frame_KW", frame.etf_KD, persistent=False)
        self.register_buffer(COUNT, torch.ones(classes))
        random = seeds.generator(seed, "ceco")
        drawn = {
            "reduce_RD": _uniform((reduced, dim), dim, random),
            "gain_WR": _uniform((width, reduced), reduced, random),
            "bias_W": _uniform((width,), reduced, random),
        }
        for name, value in drawn.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    @property
    def log_prior_K(self) -> Tensor:
        """log of the share of pictures that have each class, over all clients."""
        return log_prior(self.image_count_K)

    def forward(
        self, feat_PD: Tensor, label_P: Tensor, mean_KD: Tensor | None = None, share_K: Tensor | None = None
    ) -> Tensor:
        """The loss over the classes of a batch, in float32; zero without pixels.

        Args:
            feat_PD: features of the labelled pixels, not normalised.
            mean_KD: the global class memory to mix in.
            share_K: its share in each class.
        """
        if not len(label_P):
            return feat_PD.sum() * 0.0
        with torch.autocast(feat_PD.device.type, enabled=False):
            feat_PD = feat_PD.float()
            centre_KD, count_K = centres(feat_PD, label_P, len(self.frame_KW))
            if mean_KD is not None and share_K is not None:
                length = torch.linalg.vector_norm(feat_PD.detach(), dim=1).mean()
                centre_KD = mixed_with_memory(centre_KD, length, mean_KD, share_K)
            label_C = (count_K > 0).nonzero().flatten()
            reduced_CR = self._reduced(centre_KD[label_C], feat_PD)
            found_CW = F.linear(reduced_CR, self.gain_WR, self.bias_W)
            found_CW = found_CW.relu() if self.relu else found_CW
            found_CW = F.dropout(found_CW, self.dropout, self.training)
            return centre_loss(found_CW, label_C, self.frame_KW, self.log_prior_K, self.scale)

    def _reduced(self, centre_CD: Tensor, feat_PD: Tensor) -> Tensor:
        """Reduced centres [C, R], normalised over the pixels as if every pixel had been reduced.

        Reducing is linear, so the mean and variance that this takes follow from mean and covariance of the pixels.
        """
        reduced_CR = centre_CD @ self.reduce_RD.T
        if not self.norm:
            return reduced_CR
        mean_D = feat_PD.mean(dim=0)
        away_PD = feat_PD - mean_D
        covariance_DD = away_PD.T @ away_PD / len(away_PD)
        variance_R = ((self.reduce_RD @ covariance_DD) * self.reduce_RD).sum(dim=1)
        return (reduced_CR - self.reduce_RD @ mean_D) / (variance_R.clamp(min=0) + _EPS).sqrt()


def rare_share(count_K: Tensor, seen_K: Tensor, share: float, rare: float) -> Tensor:
    """[K]: `share` for a class with a memory that is rare at this client, else 0.

    Args:
        count_K: pixels of each class at this client.
        rare: a class is rare below this share of the mean number of pixels per class.
    """
    classes = max(1, int((count_K > 0).sum()))
    is_rare_K = count_K < rare * count_K.sum() / classes
    return torch.where(is_rare_K & seen_K, share, 0.0)


def _uniform(shape: tuple[int, ...], given: int, random: torch.Generator) -> Tensor:
    """As PyTorch draws a linear layer with `given` inputs."""
    bound = 1 / math.sqrt(given)
    return (2 * torch.rand(shape, generator=random) - 1) * bound
