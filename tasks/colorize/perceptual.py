"""Frozen networks that compare pictures: for the losses, and for the distance of two sets of pictures.

Their weights are drawn from a seed, the same on every machine, or read from a file that the client's owner has.
They are no part of the model: never trained, never sent. Must not know the task.

Legend: B batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common import seeds
from fednc.common.errors import ConfigError

FOLDER = "FEDNC_WEIGHTS"  # the environment variable that names the folder with weights
FEATURES = 32  # D
_SEED = 0  # of all runs, so that distances can be compared between them
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that VGG19 was trained with
_VGG_PLACES = (0, 2, 5, 7)  # of its convolutions among the layers of VGG19 `features`


class FrozenFeatures(nn.Module):
    """The first four convolutions of a VGG19; gives the activations of the second and of the fourth.

    Takes pictures of -1 to 1, and normalises them as VGG19 was trained with if it has its weights.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)])
        self.register_buffer("mean_C11", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std_C11", torch.full((3, 1, 1), 0.5))

    def forward(self, picture_BCHW: Tensor) -> list[Tensor]:
        """Activations [B, C, H, W] and [B, 2C, H/2, W/2]."""
        found = ((picture_BCHW + 1) / 2 - self.mean_C11) / self.std_C11
        kept = []
        for number, layer in enumerate(self.layers):
            if number == 2:
                found = F.max_pool2d(found, 2)
            found = layer(found).relu()
            if number % 2:
                kept.append(found)
        return kept


@lru_cache(maxsize=4)
def perceptual_network(width: int, weights: str, device: torch.device) -> FrozenFeatures:
    """The network of the losses. Raises ConfigError: its weights are not here, or do not fit.

    Args:
        weights: SHA-256 of a file in the folder that FEDNC_WEIGHTS names; empty: drawn from a seed.
    """
    with torch.random.fork_rng(devices=[]):
        network = FrozenFeatures(width)
    if weights:
        _read_vgg(network, weights)
    else:
        draw(list(network.layers), "perceptual")
    network = network.requires_grad_(False).eval().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _read_vgg(network: FrozenFeatures, digest: str) -> None:
    folder = os.environ.get(FOLDER, "")
    path = Path(folder) / f"{digest}.safetensors"
    if not folder or not path.is_file():
        raise ConfigError(
            f"task.perceptual_weights: {digest[:12]}... is not here. Put the file as {digest}.safetensors into a "
            f'folder and name the folder in the environment variable {FOLDER}; or set the key to "".'
        )
    data = path.read_bytes()
    if sha256(data).hexdigest() != digest:
        raise ConfigError(f"{path}: its content has another SHA-256 than its name: get the file again")
    try:
        given = safetensors.torch.load(data)
        state = {
            f"{number}.{part}": given[f"features.{place}.{part}"].float()
            for number, place in enumerate(_VGG_PLACES)
            for part in ("weight", "bias")
        }
        network.layers.load_state_dict(state)
    except Exception as e:  # any error of the parser, a missing name or another shape mean the same
        raise ConfigError(f"{path}: not the first layers of a VGG19 ({type(e).__name__}: {e})") from e
    network.mean_C11.copy_(torch.tensor(_MEAN)[:, None, None])
    network.std_C11.copy_(torch.tensor(_STD)[:, None, None])


def gram(feat_BCHW: Tensor, kind: str) -> Tensor:
    """Gram matrices of each picture [B, C, C], or of the whole batch [BC, BC], over the number of values in them.

    The published release has the second: its terms between different pictures depend on who is in the batch.
    """
    batch, channels, height, width = feat_BCHW.shape
    if kind == "batch":
        flat_NP = feat_BCHW.reshape(batch * channels, height * width)
        return flat_NP @ flat_NP.T / feat_BCHW.numel()
    flat_BCP = feat_BCHW.flatten(2)
    return torch.bmm(flat_BCP, flat_BCP.transpose(1, 2)) / (channels * height * width)


def draw(layers: Sequence[nn.Module], purpose: str) -> None:
    """Fill convolutions with weights that keep the scale of what passes through (He), from the module's seed."""
    generator = seeds.generator(_SEED, purpose)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            spread = math.sqrt(2 / layer.weight[0].numel())
            drawn = torch.randn(layer.weight.shape, generator=generator) * spread
            layer.weight.data.copy_(drawn)
            if layer.bias is not None:
                layer.bias.data.zero_()


class PictureFeatures(nn.Module):
    """Features [B, D] of pictures, each between -1 and 1: three random convolutions, means over the picture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, FEATURES)
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)])

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        """[B, D]."""
        found = picture_BCHW
        for number, layer in enumerate(self.layers):
            found = layer(found)
            found = F.leaky_relu(found, 0.2) if number < len(self.layers) - 1 else found.tanh()
        return found.mean(dim=(2, 3))


@lru_cache(maxsize=4)
def picture_features(device: torch.device) -> PictureFeatures:
    """The one network of FD-rand, on `device`, in float64."""
    with torch.random.fork_rng(devices=[]):
        network = PictureFeatures()
    draw(list(network.layers), "fd-rand")
    return network.double().requires_grad_(False).eval().to(device)
